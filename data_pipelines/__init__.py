"""From files to packed, masked batches. Nothing here imports JAX."""


def read(path):
    """Reads one recording, whatever its format (`data_pipelines.formats.read`, imported on first use)."""
    from data_pipelines.formats import read as read_file

    return read_file(path)
