"""The one exception that a person's input can cause."""


class BadInput(ValueError):
    """Something given by the user cannot be used; the message is one line that says what to do.

    Args:
        where: the file, field or argument concerned (a path or a dotted name; never a subject's id or a signal value).
        found: what was found there.
        expected: what would have been accepted.
        remedy: the way out, as an instruction.

    Commands print the message and exit with code 2; bulk work writes it to the quarantine list and goes on.
    """

    def __init__(self, where: str, found: str, expected: str, remedy: str):
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        super().__init__(f"{where}: found {found}; expected {expected}; {remedy}")

    def __reduce__(self):  # crosses worker-process boundaries whole
        return (BadInput, (self.where, self.found, self.expected, self.remedy))
