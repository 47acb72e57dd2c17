"""The configuration of an exported CSFM encoder, as `transformers` wants it."""

from transformers import PretrainedConfig


class CSFMConfig(PretrainedConfig):
    """Holds `config.json`: sizes (`encoder`), vocabulary (`tokens`, `channels`) and the window's length in seconds."""

    model_type = "csfm"

    def __init__(self, encoder=None, tokens=None, channels=None, window_seconds=10.0, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.tokens = encoder or {}, tokens or {}
        self.channels, self.window_seconds = list(channels or []), window_seconds
