"""The configuration of an exported CSFM encoder, as `transformers` wants it."""

from transformers import PretrainedConfig


class CSFMConfig(PretrainedConfig):
    """Holds `config.json`: sizes (`encoder`), vocabulary (`tokens`, `channels`), window lengths in seconds, `task`."""

    model_type = "csfm"

    def __init__(
        self,
        encoder=None,
        tokens=None,
        channels=None,
        window_seconds=10.0,
        minimum_seconds=2.0,
        task=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder, self.tokens, self.task = encoder or {}, tokens or {}, task
        self.channels = list(channels or [])
        self.window_seconds, self.minimum_seconds = window_seconds, minimum_seconds
