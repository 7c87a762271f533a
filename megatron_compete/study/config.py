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

What the arguments mean is the trainer's business; a study only varies them. `docs/study.md` explains every key.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from megatron_compete.common.yaml_file import YamlFile
from megatron_compete.launch.recipe import Recipe, Value, read_arguments, read_launch, read_recipe
from megatron_compete.study.config_reader import Arguments, Reader

SOURCES = ("stdlib", "packages")
CLOCKS = ("processor", "wall")
OWN_OPTIONS = ("array", "dependency", "parsable", "wrap", "output", "job-name", "chdir")
"""Options of sbatch that a study sets for its jobs."""


@dataclass(frozen=True)
class Corpus:
    """Where text and tokenizer come from."""

    source: str = "stdlib"
    """`stdlib`: the standard library's sources, about 12 MB; `packages`: those of all installed packages."""
    max_bytes: int | None = None
    """Upper bound of the text."""
    vocab_size: int | None = None
    """Pieces of a SentencePiece tokenizer trained on it; None: bytes."""
    train: str | None = None
    """Prefix of a dataset that is there already, with its tokenizer among the arguments; then nothing is made."""
    heldout: str | None = None


@dataclass(frozen=True)
class Upcycle:
    """How a dense model becomes a mixture: see `megatron_compete.checkpoint.upcycle`."""

    experts: int
    top_k: int | None = None
    granularity: int = 1
    noise: float = 0.0


@dataclass(frozen=True)
class Start:
    """A dense model, trained once for each seed, that variants start from as mixtures."""

    name: str
    steps: int
    upcycle: Upcycle
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One column of the study: arguments over the common recipe."""

    name: str
    label: str
    arguments: Arguments = field(default_factory=dict)
    start: str | None = None
    """Name of the `Start` it begins from; None: from scratch."""
    baseline: str | None = None
    """What it is compared with; None: the study's."""


@dataclass(frozen=True)
class Slurm:
    """Options of sbatch for the array's tasks."""

    options: dict[str, Value] = field(default_factory=dict)
    at_once: int | None = None


@dataclass(frozen=True)
class Timing:
    """How the cost of a step is measured apart from training: see `megatron_compete.study.timing`."""

    steps: int
    rounds: int
    skip: int = 10
    """Steps at the start of a run that do not count."""


@dataclass(frozen=True)
class Study:
    """A validated study."""

    name: str
    title: str
    recipe: Recipe
    steps: int
    seeds: tuple[int, ...]
    finalists: frozenset[str]
    finalist_seeds: tuple[int, ...]
    baseline: str
    variants: dict[str, Variant]
    starts: dict[str, Start] = field(default_factory=dict)
    corpus: Corpus = field(default_factory=Corpus)
    seed_arguments: tuple[str, ...] = ("seed", "compete-seed")
    probe_interval: int = 100
    probe_sequences: int = 64
    save_interval: int | None = None
    """Steps between checkpoints, from which a killed run goes on; None: it begins again."""
    clock: str = "processor"
    jobs: int = 1
    budget_minutes: float | None = None
    slurm: Slurm = field(default_factory=Slurm)
    timing: Timing | None = None
    """None: seconds are those of the training runs."""

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds that a variant is trained with."""
        return self.finalist_seeds if variant in self.finalists else self.seeds

    def baseline_of(self, variant: str) -> str:
        """The variant that this one is compared with."""
        return self.variants[variant].baseline or self.baseline


KEYS = (
    "title", "recipe", "launch", "arguments", "steps", "seeds", "finalists", "baseline", "variants", "starts", "corpus",
    "seed-arguments", "probe", "save-interval", "clock", "jobs", "budget-minutes", "slurm",
    "timing",
)  # fmt: skip


def read_study(path: Path) -> Study:
    """Read and validate a study.

    Raises:
        CompeteError: a key that is missing, unknown or of the wrong kind, or names that do not fit together.
    """
    file = YamlFile(path, "--config")
    reader = Reader(file, file.content)
    reader.only(*KEYS)
    variants, starts = _variants(reader), _starts(reader)
    probe, finalists = reader.part("probe"), reader.part("finalists")
    probe.only("interval", "sequences")
    finalists.only("variants", "seeds")
    seeds = reader.seeds("seeds")
    study = Study(
        name=path.stem,
        title=reader.get("title", str, path.stem),
        recipe=_recipe(reader),
        steps=reader.need("steps", int, least=1),
        seeds=seeds,
        finalists=frozenset(finalists.names("variants")),
        finalist_seeds=finalists.seeds("seeds", seeds),
        baseline=reader.need("baseline", str),
        variants=variants,
        starts=starts,
        corpus=_corpus(reader),
        seed_arguments=reader.names("seed-arguments", ("seed", "compete-seed")),
        probe_interval=probe.get("interval", int, 100, least=1),
        probe_sequences=probe.get("sequences", int, 64, least=1),
        save_interval=reader.get("save-interval", int, least=1),
        clock=reader.choice("clock", CLOCKS, "processor"),
        jobs=reader.get("jobs", int, 1, least=1),
        budget_minutes=reader.get("budget-minutes", (int, float), least=0),
        slurm=_slurm(reader),
        timing=_timing(reader),
    )
    _check_names(reader, study)
    return study


def _recipe(reader: Reader) -> Recipe:
    file = reader.get("recipe", str)
    recipe = Recipe() if file is None else read_recipe(reader.file.path.parent / file)
    recipe.launch.update(read_launch(reader.file, reader.content.get("launch"), "launch"))
    recipe.arguments.update(reader.arguments("arguments"))
    return recipe


def _variants(reader: Reader) -> dict[str, Variant]:
    found = {}
    variants = reader.part("variants")
    for name in variants.content:
        part = variants.part(name)
        part.only("label", "arguments", "start", "baseline")
        _check_name(variants, name)
        found[name] = Variant(
            name,
            part.get("label", str, name),
            part.arguments("arguments"),
            part.get("start", str),
            part.get("baseline", str),
        )
    return found


def _starts(reader: Reader) -> dict[str, Start]:
    found = {}
    starts = reader.part("starts")
    for name in starts.content:
        part = starts.part(name)
        part.only("steps", "arguments", "upcycle")
        _check_name(starts, name)
        how = part.part("upcycle")
        how.only("experts", "top-k", "granularity", "noise")
        upcycle = Upcycle(
            how.need("experts", int, least=1),
            how.get("top-k", int, least=1),
            how.get("granularity", int, 1, least=1),
            float(how.get("noise", (int, float), 0.0, least=0)),
        )
        found[name] = Start(name, part.need("steps", int, least=1), upcycle, part.arguments("arguments"))
    return found


def _slurm(reader: Reader) -> Slurm:
    part = reader.part("slurm")
    options = read_arguments(
        reader.file, {name: value for name, value in part.content.items() if name != "at-once"}, "slurm"
    )
    for name, value in options.items():
        if name in OWN_OPTIONS:
            part.fail("is what the study itself tells sbatch: leave it out", name)
        if isinstance(value, list):
            part.fail("is a list: write the one word that sbatch takes", name)
    return Slurm(options, part.get("at-once", int, least=1))


def _timing(reader: Reader) -> Timing | None:
    if "timing" not in reader.content:
        return None
    part = reader.part("timing")
    part.only("steps", "rounds")
    timing = Timing(part.need("steps", int, least=1), part.get("rounds", int, 2, least=1))
    if timing.steps % timing.skip:
        part.fail(f"is {timing.steps}: make it a multiple of {timing.skip}, the steps that are left out first", "steps")
    return timing


def _corpus(reader: Reader) -> Corpus:
    part = reader.part("corpus")
    part.only(*(one.name.replace("_", "-") for one in fields(Corpus)))
    corpus = Corpus(
        part.choice("source", SOURCES, "stdlib"),
        part.get("max-bytes", int, least=1),
        part.get("vocab-size", int, least=300),
        part.get("train", str),
        part.get("heldout", str),
    )
    if (corpus.train is None) != (corpus.heldout is None):
        part.fail("names one of train and heldout: give both prefixes, or neither")
    return corpus


def _check_name(reader: Reader, name: str) -> None:
    """Names become folders and Slurm's lines."""
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        reader.fail("is no name: use letters, digits, '-', '_' and '.'", name)


def _check_names(reader: Reader, study: Study) -> None:
    if not study.variants:
        reader.fail("is missing or empty: name at least the baseline", "variants")
    known = ", ".join(study.variants)
    if study.baseline not in study.variants:
        reader.fail(f"is {study.baseline!r}, which is no variant: choose from {known}", "baseline")
    for name in sorted(study.finalists - study.variants.keys()):
        reader.fail(f"names {name!r}, which is no variant: choose from {known}", "finalists", "variants")
    for variant in study.variants.values():
        if variant.start is not None and variant.start not in study.starts:
            reader.fail(f"is {variant.start!r}: the starts are {', '.join(study.starts) or 'none'}", "variants", variant.name, "start")  # fmt: skip
        baseline = study.baseline_of(variant.name)
        if baseline not in study.variants:
            reader.fail(f"is {baseline!r}, which is no variant: choose from {known}", "variants", variant.name, "baseline")  # fmt: skip
        if not set(study.seeds_of(variant.name)) & set(study.seeds_of(baseline)):
            reader.fail(f"shares no seed with its baseline {baseline!r}: nothing could be paired", "variants", variant.name)  # fmt: skip
    for name in set(study.starts) & set(study.variants):
        reader.fail(f"is {name!r} and names a variant too: choose another name", "starts")
    if study.save_interval and study.save_interval % study.probe_interval:
        reader.fail(f"is {study.save_interval}: make it a multiple of probe.interval, {study.probe_interval}", "save-interval")  # fmt: skip
