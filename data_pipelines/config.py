"""What a run's data consists of: the `tokens` and `data` parts of a config file, as plain frozen dataclasses."""

from dataclasses import dataclass, field

from data_pipelines.augment import AugmentConfig
from data_pipelines.signals import MODALITIES


@dataclass(frozen=True)
class TokenConfig:
    """How signals and text become tokens. Shared by the loader and the model, and kept in every checkpoint.

    Attributes:
        modalities: names of `signals.MODALITIES` that are read; a store's other channels are left out.
        channels: "all" of those modalities' channels, or "csfm": the 13 of the published model.
        layout: what one signal token is: "channel", one channel's patch; or "frame", the patches of all channels of a
            modality at one instant (`data_pipelines.frames`), for backbones that need all leads at once.
        patch: modality -> samples of one token.
        text_length: text tokens of a window at most; 0 = no text.
        text_vocabulary: rows of the text embedding; at least the tokenizer's size; 30,522 is BERT uncased's.
    """

    modalities: tuple[str, ...] = ("ecg", "ppg")
    channels: str = "all"
    layout: str = "channel"
    patch: dict[str, int] = field(default_factory=lambda: {m.name: m.patch for m in MODALITIES.values()})
    text_length: int = 64
    text_vocabulary: int = 30522


@dataclass(frozen=True)
class WindowConfig:
    """Which stretches of a recording an epoch takes.

    Attributes:
        seconds: a window's length; a shorter recording gives a shorter window.
        minimum_seconds: recordings below it are counted and skipped.
        most_per_recording: windows that one recording may give in one epoch (it gives one per `seconds` otherwise).
        random_start: jitter the starts by epoch (training); False: the same starts always (evaluation).
        crops: of starts that are not random: so many windows at least, or as many as cover a recording, lie evenly from
            its start to its end, and overlap where it is short; 0 tiles it from its start. Of a task, 0 is the task's.
        begin, end: seconds of every recording between which windows lie; an end of 0 is the recording's own.
    """

    seconds: float = 10.0
    minimum_seconds: float = 2.0
    most_per_recording: int = 1_000_000
    random_start: bool = True
    crops: int = 0
    begin: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class MaskConfig:
    """What is hidden from the encoder (`keep_*`, by strategy) and what the objective predicts (`target`).

    Attributes:
        keep_signal: share of a window's signal tokens that stay visible, in (0, 1).
        keep_text: share of its text tokens, in (0, 1).
        weights: strategy -> how often it is drawn for a window ("random", "channel", "time", "modality").
        structured: share of channels, of time, or of modalities that a structured strategy hides first.
        block_seconds: length of one hidden block of the "time" strategy.
        target: "hidden" tokens, or "all" tokens but CLS (Fang et al. 2024: dropped modalities too are predicted).
    """

    keep_signal: float = 0.25
    keep_text: float = 0.5
    weights: dict[str, float] = field(
        default_factory=lambda: {"random": 1.0, "channel": 0.0, "time": 0.0, "modality": 0.0}
    )
    structured: float = 0.5
    block_seconds: float = 1.0
    target: str = "hidden"


@dataclass(frozen=True)
class DataConfig:
    """Where the data is and how a batch is shaped.

    Attributes:
        stores: a store, a folder of stores, or several of them separated by commas; here, or at s3:// or gs://.
        fold: "2/5": test patients are those of the second of five folds, validation those of the next one, see `folds`;
            "" = the splits that the stores were prepared with.
        weights: store name -> mixture weight (1 for those not named); 0 leaves a store out.
        window: see `WindowConfig`.
        mask: see `MaskConfig`.
        augment: see `AugmentConfig`; of training windows alone, anew in each epoch.
        tokenizer: path of a `tokenizer.json`; "" takes the one kept with the stores.
        rows: B, rows of a global batch.
        row_tokens: T. row_visible: V; 0 = ceil of what the mask leaves visible of T. row_windows: S.
        seed: of starts, packing, row order and masks.
        workers: Grain worker processes; 0 reads in the training process.
        quality_minimum: training windows of a lower mean quality (0 to 1, `quality.measure`) are skipped.
        quality_weight: a training window is taken with its quality as the probability, drawn anew in each epoch.
        verify: "full" hashes every file of a store before use; "size" compares sizes and counts only. Files of a
            remote store are hashed when they are downloaded, with either.
    """

    stores: str = ""
    fold: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    window: WindowConfig = field(default_factory=WindowConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tokenizer: str = ""
    rows: int = 8
    row_tokens: int = 2560
    row_visible: int = 704
    row_windows: int = 8
    seed: int = 0
    workers: int = 0
    quality_minimum: float = 0.0
    quality_weight: bool = False
    verify: str = "full"
