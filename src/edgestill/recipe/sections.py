"""The sections of a recipe, each with its defaults."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from edgestill.recipe.search import Search
from edgestill.recipe.values import (
    SOFT_LOSSES,
    TERM_LOSSES,
    Count,
    Duration,
    Epochs,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Quality,
    Rate,
    Section,
    Side,
    Size,
    SomeShare,
    Taps,
    Threads,
    loss_name,
    map_name,
    scorer_name,
    share_or_split,
)

Column = Literal["text", "text_pair", "label", "messages", "prompt", "response"]


class Data(Section):
    source: str | None = Field(None, description="A folder, Hub id or file.py:function that has the splits.")
    train: str | None = Field(
        None,
        description="Training split: parquet files, an image folder or list, files of texts (jsonl, json, csv, tsv or "
        "plain text), a Hub id, file.py:function.",
    )
    test: str | None = Field(None, description="Test split; read once a seed, by the final model.")
    validation: Annotated[float | str, BeforeValidator(share_or_split)] = Field(
        0.1, description="A split of its own, or the share held out of the training split."
    )
    size: Side | None = Field(None, description="Side in pixels to which images of different sizes are brought.")
    labels_per_class: Count | None = Field(
        None,
        description="Labels kept a class for the arms; the rest is unlabelled. A teacher fitted by the run sees all.",
    )
    columns: dict[Column, str | NonNegativeInt] = Field(
        default_factory=dict,
        description="What the columns of texts are called where not so; a number is a place in a file without header.",
    )
    label: Literal["class", "number"] = Field("class", description="What the labels of texts are.")
    length: Count | None = Field(
        None,
        description="Most tokens of a text, or of a block of a language model's; by default what the model takes, at "
        "most 512, of a language model 256.",
    )
    too_long: Literal["cut", "refuse"] = Field("cut", description="What happens to a text of more tokens.")
    licence: str | None = Field(None, description="The data's licence, for the student's model card.")
    workers: Threads | None = Field(None, description="Decoding workers; the order of the data does not depend on it.")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="When an image is broken or missing: stop, or leave it out and count it."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Data":
        if self.source is None and (self.train is None or self.test is None):
            raise ValueError("needs `source` (or just `data: DIR`), or both `train` and `test`")
        if self.source is not None and (self.train is not None or self.test is not None):
            raise ValueError("takes `source` or `train` and `test`, not both")
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"validation: a share between 0 and 1 or a split; {self.validation} came")
        return self


class Input(Section):
    mean: list[float] | None = Field(
        None, description="Channel means of pixels in 0…1; the training split's by default."
    )
    std: list[Positive] | None = Field(
        None, description="Channel standard deviations; the training split's by default."
    )
    size: Side | None = Field(None, description="Side in pixels that the model sees; the data's by default.")


class Fit(Section):
    epochs: Epochs = Field(description="Epochs over the labelled training images.")
    batch_size: Count = Field(128, description="Samples a step; 32 for texts.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9. adamw for texts.")
    lr: Rate = Field(0.1, description="Peak learning rate; 5e-4 for texts.")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled for adamw, L2 for sgd; 0.01 for texts.")
    keep: bool = Field(
        False, description="Keep the fitted teacher in the cache, for later runs that would fit it all the same."
    )


Trust = Annotated[bool, Field(description="Run the code that a Hugging Face model brings along: read it first.")]


def _only_hugging_face(section: "Teacher | Student") -> None:
    open_search = getattr(section, "search", None) is not None  # its candidates are checked one by one
    if section.trust_remote_code and not open_search and not (section.model or "").startswith("hf:"):
        raise ValueError(f"trust_remote_code is for hf: models alone; {section.model} came: leave it out")


class Teacher(Section):
    model: str = Field(description="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a saved student folder.")
    weights: str | None = Field(None, description="Safetensors, or a plain state dict. Given, nothing is fitted.")
    classes: list[NonNegativeInt] | None = Field(
        None,
        min_length=2,
        description="Which of the teacher's outputs stand for the data's classes, in their order; all by default.",
    )
    licence: str | None = Field(None, description="The teacher's licence, for the student's model card.")
    fit: Fit | None = Field(None, description="How to fit the teacher when no weights are given.")
    store: str | None = Field(
        None, description="A folder that the verb capture made: its signals in place of the teacher's passes."
    )
    precision: Literal["float32", "bf16", "int8"] = Field(
        "float32",
        description="What a teacher of texts computes in, to take less memory: bf16, or int8 weights of its linear "
        "layers. A teacher that the run fits is lowered behind it.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model's function.")
    input: Input = Field(default_factory=Input, description="What the model expects of its input.")
    trust_remote_code: Trust = False

    @model_validator(mode="after")
    def _trust(self) -> "Teacher":
        _only_hugging_face(self)
        return self


class Width(Section):
    heads: SomeShare = Field(1.0, description="Of the heads of each attention; with grouped queries, of the groups.")
    hidden: SomeShare | None = Field(
        None, description="Of the channels between blocks; as many as there are heads by default."
    )
    feed_forward: SomeShare = Field(1.0, description="Of the channels inside each block's linear layers.")
    channels: SomeShare = Field(1.0, description="Of the channels of a model without attention.")


class FromTeacher(Section):
    depth: Annotated[int, Field(ge=1)] | SomeShare | None = Field(
        None, description="Blocks to keep: how many, or which share of the teacher's."
    )
    keep: Literal["spread", "first", "last", "important"] | list[NonNegativeInt] = Field(
        "spread",
        description="Which blocks: evenly spread with the first and the last, the first, the last, those without which "
        "the loss on training samples is greatest, or a list.",
    )
    width: SomeShare | Width | None = Field(
        None, description="Share of heads and channels to keep: one for all, or one for each kind."
    )
    importance: Literal["magnitude", "activation", "taylor"] = Field(
        "activation",
        description="Which heads and channels: by their weights alone, by weights and what they are given, or by what "
        "the loss changes by without them; of 512 training samples.",
    )
    vocabulary: Literal["all", "data"] = Field(
        "all", description="Which tokens: all, or those that the training texts use, with a tokenizer of these."
    )

    @model_validator(mode="after")
    def _which(self) -> "FromTeacher":
        listed = isinstance(self.keep, list)
        if listed and self.depth is not None:
            raise ValueError("needs `depth`, or a list of blocks in `keep`, and not both")
        if not listed and self.depth is None and self.width is None and self.vocabulary == "all":
            raise ValueError("needs `depth`, a list of blocks in `keep`, `width`, or `vocabulary: data`")
        if self.keep == "important" and self.depth is None:
            raise ValueError("keep: important needs `depth`, how many blocks")
        if isinstance(self.keep, list) and self.keep != sorted({*self.keep}):
            raise ValueError(f"keep: needs blocks in rising order, each once; {self.keep} came")
        return self


class Lora(Section):
    rank: Count = Field(8, description="Of the adapters.")
    alpha: Positive = Field(16.0, description="An adapter counts alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="In front of the adapters.")
    targets: Taps | None = Field(
        None,
        description="Linear layers that get one, by path or the end of it, as q_proj; all of the blocks by default.",
    )


class Student(Section):
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = Field(
        None, description="Of one of several students: its run's folder."
    )
    model: str | None = Field(
        None, description="file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a saved student folder."
    )
    from_teacher: FromTeacher | None = Field(
        None, description="In place of a model: some of the teacher's blocks, channels and heads, or tokens."
    )
    search: Search | None = Field(
        None, description="In place of a model: the one of many that is best within the budget, by measurement."
    )
    weights: str | None = Field(None, description="Weights that every arm starts from; random ones by default.")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Of a model hf:FOLDER-OR-ID: sizes of its configuration, num_hidden_layers and the like, in "
        "place of its own. It then begins from random weights.",
    )
    lora: Lora | None = Field(
        None, description="Train adapters beside the student's linear layers alone; they are merged behind it."
    )
    classifier: Literal["own", "teacher"] = Field(
        "own", description="teacher: the student's last maps, projected, in front of the teacher's frozen classifier."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model's function.")
    input: Input = Field(default_factory=Input, description="What the model expects of its input.")
    trust_remote_code: Trust = False

    @model_validator(mode="after")
    def _one_way(self) -> "Student":
        if [self.model, self.from_teacher, self.search].count(None) != 2:
            raise ValueError("needs one of `model`, `from_teacher` and `search`")
        if self.config and not (self.model or "").startswith("hf:"):
            raise ValueError("config: is for hf: models alone")
        if self.from_teacher is not None and (self.weights is not None or self.classifier == "teacher"):
            raise ValueError("from_teacher: it begins from the teacher's weights, and has its own classifier")
        _only_hugging_face(self)
        return self


class Term(Section):
    loss: Annotated[str, AfterValidator(loss_name(TERM_LOSSES))] = Field(description="A loss over taps.")
    student: Taps | None = Field(
        None, description="Student taps; by default its stages, or a plain transformer's blocks."
    )
    teacher: Taps | None = Field(
        None, description="Teacher taps; by default its stages, or a plain transformer's blocks."
    )
    map: Annotated[str, AfterValidator(map_name)] | None = Field(
        None,
        description="direct: equal shapes, pair by pair. width: pair by pair, aligned. depth: evenly spread. first, "
        "last, every-2 and the like: of the teacher's taps. auto: the most similar ones, measured. origin: of a "
        "student from its teacher, what each tap was made of. By default origin where that is known, else depth.",
    )
    weight: NonNegative | Literal["balanced"] = Field(
        1.0,
        description="Factor of each pair's loss. balanced: the gradient of all pairs as large as the soft part's, "
        "measured over the first steps, then held.",
    )
    aligner: Literal["auto", "conv", "linear", "interpolate", "none"] = Field(
        "auto", description="What brings the student's tap to the teacher's shape; auto: conv for maps, else linear."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the loss.")


class Distill(Section):
    loss: Annotated[str, AfterValidator(loss_name((*SOFT_LOSSES, "none")))] = Field(
        "kl", description="D of the soft part; none leaves it out."
    )
    alpha: Fraction = Field(0.9, description="Weight of the teacher: (1 − alpha)·CE + alpha·D.")
    temperature: Rate = Field(
        4.0,
        description="T of the soft part, which includes the factor T²; 1 for language models, 0.05 for embeddings.",
    )
    standardize: bool = Field(False, description="Both sides' logits as z-scores before the loss.")
    options: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the loss.")
    terms: list[Term] = Field(default_factory=list, description="Losses over taps, added with their weights.")


class Phase(Section):
    name: str = Field(min_length=1, description="A name to address it by: phases.NAME.key.")
    share: SomeShare = Field(description="Share of all steps.")
    order: Literal["uniform", "easiest-first"] = Field(
        "uniform",
        description="easiest-first: by the teacher's own loss, ranked within class; the admitted part grows to all.",
    )
    alpha: Fraction | None = Field(None, description="distill.alpha unless given.")
    temperature: Rate | None = Field(None, description="distill.temperature unless given.")
    lr: Rate | None = Field(
        None,
        description="train.lr unless given; the schedule's shape is kept. Of a quantize phase 3e-4, of AdamW, and "
        "a curve of its own.",
    )
    terms: list[Term] | None = Field(None, description="distill.terms unless given.")
    fake_quantize: Literal["int8"] | None = Field(
        None, description="Of the last phase alone: the student computes as in 8 bits, and trains for it."
    )


def default_phases(task: str = "") -> list[Phase]:
    """Those of a task. Texts to embed may have no labels, to order them by or to learn from without a teacher."""
    if task == "sentence-embedding":
        return [Phase(name="distill", share=1.0)]
    return [
        Phase(name="warmup", share=0.2, order="easiest-first"),
        Phase(name="distill", share=0.6),
        Phase(name="finetune", share=0.2, alpha=0.0, terms=[]),
    ]


class Views(Section):
    crop: Annotated[int, Field(ge=0, le=512)] = Field(0, description="Pixels of padding for the random crop.")
    flip: bool = Field(False, description="Mirror half of the images.")
    policy: Literal["none", "strong"] = Field(
        "none", description="strong: colour, contrast, shift and erasing as well."
    )


class Train(Section):
    epochs: Epochs = Field(20.0, description="Length in passes over the training split; may be a fraction.")
    batch_size: Count = Field(128, description="Samples a step; 32 for texts.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9. adamw for texts.")
    lr: Rate = Field(0.1, description="Peak learning rate; 5e-4 for texts.")
    lr_ramp: Fraction = Field(0.05, description="Share of all steps over which the learning rate rises.")
    lr_shape: Literal["cosine", "constant"] = Field("cosine", description="What follows the ramp.")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled for adamw, L2 for sgd; 0.01 for texts.")
    views: Views = Field(default_factory=Views, description="Augmentation of the training images.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of the hard part.")
    mixup: NonNegative = Field(0.0, description="Beta parameter of mixup; 0 mixes nothing.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of the averaged student; 0 averages nothing."
    )
    keep: Literal["last", "best"] = Field("last", description="Which weights an arm ends with; best is by validation.")
    device: str = Field("auto", description="auto, cpu, or a torch device such as cuda:0.")
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: autocast of the forward passes.")
    threads: Threads | None = Field(None, description="CPU threads of the training; all cores by default.")
    clip: Positive | None = Field(None, description="Largest norm of the gradient; not clipped by default.")
    accumulate: Count = Field(1, description="Pieces a step's batch is passed in; the gradient is the whole batch's.")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="When a loss is not finite: stop, or drop the step and count it."
    )
    tracker: Literal["tensorboard", "wandb"] | None = Field(None, description="Where metrics go besides metrics.jsonl.")


class Capture(Section):
    codec: Literal["dense", "top-k", "sampled"] = Field(
        "dense",
        description="What is kept of a position's logits: all in float16; the k greatest with the others' mass; or "
        "classes drawn by the teacher's probabilities.",
    )
    k: Count = Field(32, description="Classes kept by top-k.")
    draws: Annotated[int, Field(ge=1, le=65535)] = Field(16, description="Draws a position by sampled.")
    temperatures: list[Rate] | None = Field(
        None, min_length=1, description="At which top-k and sampled can be learned from; the recipe's own by default."
    )
    taps: dict[str, Literal["pooled", "int8"]] = Field(
        default_factory=dict,
        description="Taps of the teacher to keep: pooled, their mean over positions, or int8, all of them in 8 bits.",
    )
    views: Count = Field(1, description="Augmented views kept of each image; training cycles through them.")
    seed: NonNegativeInt = Field(0, description="Of the views and the draws.")
    batch: Count = Field(64, description="Samples a forward pass of the teacher; 8 for language models.")


class Compare(Section):
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="Repetitions of each arm: seeds 0, 1, …")
    baseline: bool = Field(True, description="Train the same student without the teacher as well.")
    scratch: bool = Field(
        True, description="Of a student that begins from its teacher's weights: train it from random ones as well."
    )


class Quantize(Section):
    samples: Count = Field(300, description="Training images that the ranges of activations are measured on.")
    keep_float: list[str] | Literal["auto"] = Field(
        default_factory=list,
        description="Layers that stay in float, by path; openvino-int8 and onnx-int8-dynamic know none. auto: the "
        "fewest of those that lose most, until the rest is within 0.5 points of the float student on validation.",
    )

    @model_validator(mode="after")
    def _enough(self) -> "Quantize":
        if self.samples < 2:
            raise ValueError(f"samples: ranges over many images are needed, 200 to 500 as a rule; {self.samples} came")
        return self


class Verify(Section):
    samples: Count = Field(1000, description="Real samples on which each file is compared with the student.")
    max_abs_error: Positive = Field(1e-3, description="Largest difference of an output that a float32 file may have.")
    agreement: Fraction = Field(
        0.9,
        description="Least share of samples on which a file of less precision agrees; of embeddings the least mean "
        "cosine of the file's and the student's.",
    )


class Bench(Section):
    host: str | None = Field(
        None,
        description="Where files are measured: this host by default; user@pi over SSH; qemu-aarch64 also checks the "
        "answers of ONNX files on an emulated ARM processor.",
    )
    python: str = Field("python3", description="The Python of that host.")


class Skill(Section):
    scorer: Annotated[str, AfterValidator(scorer_name)] = Field(
        description="How answers are scored: bits-per-byte, perplexity, exact-number, exact-text, multiple-choice, "
        "instructions (IFEval's form), lm-eval, or file.py:function of (reply, row), which gives a number in 0…1."
    )
    data: str = Field(description="Files, a Hub id or file.py:function; of lm-eval a file with its task's columns.")
    task: str | None = Field(None, description="The task of lm-eval.")
    measure: str | None = Field(None, description="Which measure of lm-eval's task; its first by default.")
    prompt: str | None = Field(
        None, description='How a row is asked, as in "Q: {question}\\nA:"; by default its column prompt or question.'
    )
    answer: str | None = Field(None, description="The right answer, in the same way; by default its column answer.")
    choices: str | list[str] = Field(
        "choices", description="Of multiple choice: the column that lists them, or the texts of all rows."
    )
    between: str | None = Field(
        None, description="What stands between a prompt and its answer; a space unless the prompt ends in one."
    )
    shots: NonNegativeInt = Field(0, description="Examples, with their answers, that stand before each question.")
    examples: str | None = Field(None, description="Where these come from: its first rows.")
    chat: bool | None = Field(
        None, description="Ask through the chat template; by default where the task is instruction."
    )
    samples: Count | None = Field(None, description="Evenly spaced rows alone, of lm-eval the first; all by default.")
    tokens: Count = Field(128, description="Most tokens of a reply.")
    length: Count | None = Field(None, description="Most tokens of a prompt with its reply; data.length by default.")
    stop: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="Texts before which a reply ends; an empty line by default where there is no chat."
    )

    @property
    def writes(self) -> bool:
        """Whether it is the replies to prompts that are scored."""
        return self.scorer not in ("bits-per-byte", "perplexity", "multiple-choice", "lm-eval")

    @model_validator(mode="after")
    def _of_its_scorer(self) -> "Skill":
        written = self.writes
        for name, value, takes in (
            ("task", self.task, self.scorer == "lm-eval"),
            ("measure", self.measure, self.scorer == "lm-eval"),
            ("choices", self.choices != "choices", self.scorer == "multiple-choice"),
            ("chat", self.chat, written),
            ("between", self.between, written or self.scorer == "multiple-choice"),
            ("stop", self.stop, written),
            ("tokens", self.tokens != type(self).model_fields["tokens"].default, written or self.scorer == "lm-eval"),
            ("prompt", self.prompt, written or self.scorer == "multiple-choice"),
            ("answer", self.answer, self.scorer not in ("bits-per-byte", "perplexity", "instructions", "lm-eval")),
            ("shots", self.shots, self.scorer not in ("bits-per-byte", "perplexity", "instructions")),
        ):
            if value and not takes:
                raise ValueError(f"{name}: is not for the scorer {self.scorer}")
        if self.scorer == "lm-eval" and self.task is None:
            raise ValueError("needs `task`, the name of a task of lm-eval")
        if bool(self.shots) != (self.examples is not None):
            raise ValueError("shots and examples belong together: how many, and the data that they come from")
        if self.length is not None and self.tokens >= self.length and written:
            raise ValueError(f"tokens: a reply of {self.tokens} leaves a prompt no room in a length of {self.length}")
        return self


class Compute(Section):
    time: Duration | None = Field(None, description="Of a search: most time that it takes, as in 2 h.")


class Budget(Section):
    size: Size | None = Field(None, description="Largest file, as in 120 KB.")
    latency: Duration | None = Field(None, description="Largest median time of one sample, as in 2 ms.")
    memory: Size | None = Field(None, description="Largest peak memory over an empty model, as in 8 MB.")
    quality: Quality | None = Field(None, description="Smallest test quality, 0.87; of bits per byte the largest.")
    keep: dict[str, Fraction] = Field(
        default_factory=dict,
        description="Smallest share of the teacher's that is retained, by skill: {arithmetic: 0.9}.",
    )
    runtime: Literal["onnxruntime", "executorch", "openvino", "litert"] | None = Field(
        None, description="Whose files the limits are for; all by default."
    )
    threads: Threads = Field(1, description="Threads of the runtime.")
