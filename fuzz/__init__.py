"""`make fuzz`: a hundred thousand damaged files give a recording or a named error, in bounded time and memory."""
