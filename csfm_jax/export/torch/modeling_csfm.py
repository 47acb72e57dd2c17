"""`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`: a thin wrapper of `CSFMEncoder` and a task's head."""

import os

from transformers import PreTrainedModel

from .configuration_csfm import CSFMConfig
from .csfm_torch import CSFMEncoder, read_spec, verify  # first: it verifies the code beside it

from .csfm_task import Predicts, build_head  # isort: skip


class CSFMModel(Predicts, PreTrainedModel):
    """The encoder under `model.encoder`; `embed`, `encode` and `forward` are its own. Of a fine-tuned model also
    `model.head`, `predict` and `scores`."""

    config_class = CSFMConfig
    main_input_name = "patches"

    def __init__(self, config):
        super().__init__(config)
        values = config.to_dict()
        self.encoder, self.task = CSFMEncoder(values), values.get("task")
        if self.task:
            self.head = build_head(values)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; a local folder is verified against its manifest first (a `Refused` names the file)."""
        local = os.path.isdir(pretrained_model_name_or_path)
        if local:
            verify(pretrained_model_name_or_path)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if local:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.encoder.spec = read_spec(pretrained_model_name_or_path)
        return loaded

    def forward(self, patches, channel, time, text):
        return self.encoder(patches, channel, time, text)

    def encode(self, *args, **kwargs):
        return self.encoder.encode(*args, **kwargs)

    def embed(self, *args, **kwargs):
        return self.encoder.embed(*args, **kwargs)
