"""A study as a YAML file: what is varied, over which seeds, on which text.

    recipe: ../demo.yaml           # a recipe, or its sections `launch` and `arguments` here; here overrides there
    arguments: {num-layers: 4}
    steps: 1200
    seeds: [1, 2, 3]
    baseline: topk
    variants:
      topk: {label: top-K, arguments: {router: topk}}
      paper: {label: the authors' recipe, arguments: {compete-rate: 0.07}}
    finalists: {variants: [topk, paper], seeds: [1, 2, 3, 4, 5]}
    corpus: {source: stdlib}

What the arguments mean is the trainer's business; a study only varies them. `docs/guides/studies.md` explains every key.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from megatron_compete.common.sections import Count, Names, Number, Section, Seeds, read_section, refuse
from megatron_compete.common.yaml_file import YamlFile
from megatron_compete.launch.recipe import Recipe, Value, read_arguments, read_launch, read_recipe

Clock = Literal["processor", "wall"]
CLOCKS: tuple[str, ...] = get_args(Clock)
Axis = Literal["steps", "flops", "seconds", "data"]
"""What two variants are given equal amounts of: see `megatron_compete.study.axes`."""
AXES: tuple[Axis, ...] = get_args(Axis)
OWN_OPTIONS = ("array", "dependency", "parsable", "wrap", "output", "job-name", "chdir")
"""Options of sbatch that a study sets for its jobs."""
OWN_ARGUMENTS = (
    "train-iters", "probe-log", "probe-data", "probe-sequences", "probe-interval", "save", "load", "save-interval",
    "tensorboard-dir", "data-cache-path", "initial",
)  # fmt: skip
"""Arguments that a study sets for each of its runs, and that it takes from its own keys."""

Arguments = dict[str, Any]
"""Checked apart (`_check_arguments`), by the rules of recipes."""


class Corpus(Section):
    """Where text and tokenizer come from."""

    source: Literal["stdlib", "packages"] = "stdlib"
    """`stdlib`: the standard library's sources, about 12 MB; `packages`: those of all installed packages."""
    max_bytes: Count | None = None
    """Upper bound of the text."""
    vocab_size: Annotated[int, Field(strict=True, ge=300)] | None = None
    """Pieces of a SentencePiece tokenizer trained on it; None: bytes."""
    ciphers: Count | None = None
    """The text in pieces, each in one of so many permutations of the alphabet: see `megatron_compete.study.ciphers`."""
    cipher_alphabet: Literal["ascii", "letters"] = "ascii"
    """`ascii`: printable ASCII and newline; `letters`: the text is brought to 26 letters and the space first."""
    train: str | None = None
    """Prefix of a dataset that is there already, with its tokenizer among the arguments; then nothing is made."""
    heldout: str | None = None


class Upcycle(Section):
    """How a dense model becomes a mixture: see `megatron_compete.checkpoint.upcycle`."""

    experts: Count
    top_k: Count | None = None
    granularity: Count = 1
    noise: Number = 0.0


class Start(Section):
    """A model, trained once for each seed, that variants start from."""

    steps: Count
    upcycle: Upcycle | None = None
    """Of a language model, which is dense and becomes a mixture; in `task: regions` the variants' own arguments say it."""
    arguments: Arguments = Field(default_factory=dict)


class Variant(Section):
    """One column of the study: arguments over the common recipe."""

    label: str | None = None
    arguments: Arguments = Field(default_factory=dict)
    steps: Count | None = None
    """None: the study's."""
    start: str | None = None
    """Name of the `Start` it begins from; None: from scratch."""
    baseline: str | None = None
    """What it is compared with; None: the study's."""


class Headroom(Section):
    """Variants that tell what routing can gain in this setting at all, by the part they play: see
    `megatron_compete.study.headroom`."""

    baseline: str | None = None
    """The learned router that they bound, which is also what they are compared with; None: the study's baseline."""
    hash: str | None = None
    """Routes by the token alone, without learning."""
    frozen: str | None = None
    """A router with random weights that never change."""
    dense_gradient: str | None = None
    """Utility at every step, of all tokens: what the whole gradient of the router's logits can gain."""
    oracle: str | None = None
    """Routes by the truth, where the task has one."""

    @property
    def arms(self) -> dict[str, str]:
        """{part: variant} of those that are named, from the worst expected to the best."""
        parts = {part: getattr(self, part.replace("-", "_")) for part in ("frozen", "hash", "dense-gradient", "oracle")}
        return {part: name for part, name in parts.items() if name is not None}


def _one_or_more(value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A mapping stands for a list of one, and its errors name its keys without a number."""
    return (Headroom.model_validate(value, context=info.context),) if isinstance(value, dict) else read(value)


class Comparison(Section):
    """A comparison that is chosen before any run, and corrected for how many there are."""

    variant: str
    against: str | None = None
    """None: the variant's baseline."""
    at: Axis = "steps"


class Slurm(Section, extra="allow"):
    """Options of sbatch for the array's tasks, beside how many tasks run at once."""

    at_once: Count | None = None

    @property
    def options(self) -> dict[str, Value]:
        return dict(self.model_extra or {})


class Timing(Section):
    """How the cost of a step is measured apart from training: see `megatron_compete.study.timing`."""

    steps: Count
    rounds: Count = 2

    @property
    def skip(self) -> int:
        """Steps at the start of a run that do not count."""
        return 10


class Probe(Section):
    """The fixed text that every run is probed with."""

    interval: Count = 100
    sequences: Count = 64


class Finalists(Section):
    """Variants that get other seeds, more of them as a rule."""

    variants: Names = ()
    seeds: Seeds | None = None
    """None: those of the study."""


class Study(Section):
    """A validated study, as its file has it."""

    title: str | None = None
    task: Literal["language", "regions"] = "language"
    """`language`: jobs of the trainer on text; `regions`: one layer learns a teacher's regions (`study/regions/`)."""
    recipe_file: str | None = Field(None, alias="recipe")
    launch: dict[str, Any] = Field(default_factory=dict)
    arguments: Arguments = Field(default_factory=dict)
    steps: Count
    seeds: Seeds
    finalists: Finalists = Finalists()
    baseline: str
    variants: dict[str, Variant] = Field(default_factory=dict)
    headroom: Annotated[tuple[Headroom, ...], WrapValidator(_one_or_more)] = ()
    """One section, or a list of them with a baseline each."""
    comparisons: tuple[Comparison, ...] = ()
    smallest_difference: Number | None = None
    """The difference in loss that would matter; the report says how many seeds it needs."""
    starts: dict[str, Start] = Field(default_factory=dict)
    corpus: Corpus = Corpus()
    seed_arguments: Names = ("seed", "compete-seed")
    probe: Probe = Probe()
    save_interval: Count | None = None
    """Steps between checkpoints, from which a killed run goes on; None: it begins again."""
    clock: Clock = "processor"
    jobs: Count = 1
    budget_minutes: Number | None = None
    slurm: Slurm = Slurm()
    timing: Timing | None = None
    """None: seconds are those of the training runs."""
    _name: str = PrivateAttr("")
    _recipe: Recipe = PrivateAttr(default_factory=Recipe)

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return self._name

    @property
    def recipe(self) -> Recipe:
        """What all variants share: the recipe's file with `launch` and `arguments` over it."""
        return self._recipe

    def label_of(self, variant: str) -> str:
        """How figures and tables call a variant."""
        return self.variants[variant].label or variant

    def steps_of(self, variant: str) -> int:
        """Steps that a variant is trained."""
        return self.variants[variant].steps or self.steps

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds that a variant is trained with."""
        return self.finalists.seeds or self.seeds if variant in self.finalists.variants else self.seeds

    def baseline_of(self, variant: str) -> str:
        """The variant that this one is compared with."""
        return self.variants[variant].baseline or self.baseline

    def decays(self, variant: str) -> bool:
        """Whether a variant's learning rate is not constant to the end, so that a run that is cut off is the worse for it."""
        default = {"language": "linear", "regions": "cosine"}[self.task]  # Megatron's, and that of `study/regions/`
        given = (self.recipe.arguments | self.variants[variant].arguments).get("lr-decay-style")
        return (given or default) != "constant"

    def other_of(self, comparison: Comparison) -> str:
        """What a declared comparison compares its variant with."""
        if comparison.against is None and comparison.variant in self.variants:
            return self.baseline_of(comparison.variant)
        return comparison.against or self.baseline


def read_study(path: Path) -> Study:
    """Read and validate a study.

    Raises:
        CompeteError: a key that is missing, unknown or of the wrong kind, or names that do not fit together.
    """
    file = YamlFile(path, "--config")
    study = read_section(file, Study, file.content)
    _check_arguments(file, study)
    _check_names(file, study)
    _check_values(file, study)
    study._name = path.stem
    if study.recipe_file is not None:
        study._recipe = read_recipe(path.parent / study.recipe_file)
    study._recipe.launch.update(read_launch(file, study.launch, "launch"))
    study._recipe.arguments.update(study.arguments)
    return study


def _check_arguments(file: YamlFile, study: Study) -> None:
    for keys, arguments in _argument_sections(study):
        for name in read_arguments(file, arguments, *keys):
            if name in OWN_ARGUMENTS:
                refuse(file, "is set by the study itself: leave it out", *keys, name)
    for name, value in read_arguments(file, study.slurm.options, "slurm").items():
        if name in OWN_OPTIONS:
            refuse(file, "is what the study itself tells sbatch: leave it out", "slurm", name)
        if isinstance(value, list):
            refuse(file, "is a list: write the one word that sbatch takes", "slurm", name)


def _argument_sections(study: Study) -> Iterator[tuple[tuple[str, ...], Arguments]]:
    yield ("arguments",), study.arguments
    for name, variant in study.variants.items():
        yield ("variants", name, "arguments"), variant.arguments
    for name, start in study.starts.items():
        yield ("starts", name, "arguments"), start.arguments


def _check_names(file: YamlFile, study: Study) -> None:
    for part, names in (("variants", study.variants), ("starts", study.starts)):
        for name in names:  # becomes a folder, and a line of Slurm's
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
                refuse(file, "is no name: use letters, digits, '-', '_' and '.'", part, name)
    if not study.variants:
        refuse(file, "is missing or empty: name at least the baseline", "variants")
    known = ", ".join(study.variants)
    if study.baseline not in study.variants:
        refuse(file, f"is {study.baseline!r}, which is no variant: choose from {known}", "baseline")
    for name in study.finalists.variants:
        if name not in study.variants:
            refuse(file, f"names {name!r}, which is no variant: choose from {known}", "finalists", "variants")
    _check_headroom(file, study, known)
    _check_comparisons(file, study, known)
    for name, variant in study.variants.items():
        if variant.start is not None and variant.start not in study.starts:
            refuse(file, f"is {variant.start!r}: the starts are {', '.join(study.starts) or 'none'}", "variants", name, "start")  # fmt: skip
        baseline = study.baseline_of(name)
        if baseline not in study.variants:
            refuse(file, f"is {baseline!r}, which is no variant: choose from {known}", "variants", name, "baseline")
        if not set(study.seeds_of(name)) & set(study.seeds_of(baseline)):
            refuse(file, f"shares no seed with its baseline {baseline!r}: nothing could be paired", "variants", name)
    for name in study.starts:
        if name in study.variants:
            refuse(file, f"is {name!r} and names a variant too: choose another name", "starts")


def _check_headroom(file: YamlFile, study: Study, known: str) -> None:
    is_list = isinstance(file.content.get("headroom"), list)
    for number, one in enumerate(study.headroom):
        place = ("headroom", str(number)) if is_list else ("headroom",)
        if not one.arms:
            refuse(file, "names no variant: give hash, frozen, dense-gradient, and oracle where there is one", *place)
        baseline = one.baseline or study.baseline
        for part, name in {"baseline": baseline, **one.arms}.items():
            if name not in study.variants:
                refuse(file, f"is {name!r}, which is no variant: choose from {known}", *place, part)
        for part, name in one.arms.items():
            if name == baseline:
                refuse(file, f"is {name!r}, the baseline itself", *place, part)
            if study.baseline_of(name) != baseline:
                refuse(file, f"is {name!r}, which is compared with {study.baseline_of(name)!r} and not with {baseline!r}: "
                             f"name it in a section of that baseline", *place, part)  # fmt: skip


def _check_comparisons(file: YamlFile, study: Study, known: str) -> None:
    for number, one in enumerate(study.comparisons):
        place = ("comparisons", str(number))
        for key, name in (("variant", one.variant), ("against", study.other_of(one))):
            if name not in study.variants:
                refuse(file, f"is {name!r}, which is no variant: choose from {known}", *place, key)
        if one.variant == study.other_of(one):
            refuse(file, f"compares {one.variant!r} with itself", *place)
        if not set(study.seeds_of(one.variant)) & set(study.seeds_of(study.other_of(one))):
            refuse(file, "names variants that share no seed: nothing could be paired", *place)


def _check_values(file: YamlFile, study: Study) -> None:
    """What must fit another value."""
    for name, start in study.starts.items():
        if study.task == "language" and start.upcycle is None:
            refuse(file, "is missing: say how the dense model becomes a mixture", "starts", name, "upcycle")
        if study.task != "language" and start.upcycle is not None:
            refuse(file, f"is of language models; with task: {study.task} the variants' arguments say it", "starts", name, "upcycle")  # fmt: skip
    if study.task != "language":
        for key, what in (("corpus", "text"), ("launch", "ranks"), ("save_interval", "checkpoints: a run that was killed begins again")):  # fmt: skip
            if key in study.model_fields_set:
                refuse(file, f"is of language models; task: {study.task} has no {what}", key.replace("_", "-"))
    corpus, timing, save, probe = study.corpus, study.timing, study.save_interval, study.probe.interval
    if (corpus.train is None) != (corpus.heldout is None):
        refuse(file, "names one of train and heldout: give both prefixes, or neither", "corpus")
    if corpus.ciphers is not None and (corpus.train or corpus.vocab_size):
        other = "a dataset that is there already" if corpus.train else "vocab-size, whose pieces would tell the cipher"
        refuse(
            file, f"goes with text that is made here, in bytes, not with {other}: leave one out", "corpus", "ciphers"
        )
    if corpus.ciphers is None and corpus.cipher_alphabet != "ascii":
        refuse(file, "permutes nothing without ciphers: give their number too", "corpus", "cipher-alphabet")
    if timing and timing.steps % timing.skip:
        refuse(file, f"is {timing.steps}: make it a multiple of {timing.skip}, the steps that are left out first", "timing", "steps")  # fmt: skip
    if save and save % probe:
        refuse(file, f"is {save}: make it a multiple of probe.interval, {probe}", "save-interval")
