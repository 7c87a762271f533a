"""Megatron's arguments plus the competition's, checked before anything is built."""

import argparse
import dataclasses
import importlib.util
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols
from megatron.training.argument_utils import ArgumentGroupFactory

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import DEFAULT_PRESET, PREFIX, CompeteConfig, flag_of
from megatron_compete.data.conversations import config as conversations
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.job_rules import check_conversation_arguments
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.layout.vision_rules import check_excluded
from megatron_compete.moe.baselines import BASELINES, check_flags
from megatron_compete.moe.baselines.config import PREFIX as BASELINE_PREFIX
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.baselines.config import flag_of as baseline_flag_of
from megatron_compete.training.argument_help import escape_help
from megatron_compete.training.data_arguments import check_data_arguments
from megatron_compete.training.local_paths import check_local_paths, refuse_msc
from megatron_compete.training.presets import PRESETS, defaults_asked_for
from megatron_compete.training.probe_log import add_probe_arguments, check_probe_arguments
from megatron_compete.training.refused import check_refused
from megatron_compete.training.renamed import with_replacements
from megatron_compete.vlm import config as vision
from megatron_compete.vlm.config import VisionConfig

EVAL_INTERVAL = 1000
"""Megatron's default of None makes its dataset sizes a division by None."""

STUCK_TIMEOUT = 1800.0
"""Seconds. Below it lie a step, the optimizer's part included, and the time between two microbatches."""
GRADIENT_FUSION = "fused_weight_gradient_mlp_cuda"
"""apex's extension; Megatron's output layer asks for it wherever weight gradients are accumulated by the GEMM."""
SOFTMAX_FUSION = "scaled_upper_triang_masked_softmax_cuda"
"""Kernel of Megatron's local attention in half precision."""


class SettingsGroup(ArgumentGroupFactory):
    """Flags from the fields of a dataclass of ours, as Megatron makes flags from its own.

    Args:
        settings: the dataclass; the text under a field is its help.
        flag_of: from a field's name to its flag.
        dest_of: from a field's name to the argument's name after parsing.
        of_presets: a preset may give values also to fields that are None by themselves, which the help then shows; else
            None is what the field's text says of it.
    """

    def __init__(
        self,
        settings: type,
        flag_of: Callable[[str], str],
        dest_of: Callable[[str], str],
        of_presets: bool = False,
    ) -> None:
        super().__init__(settings)
        self.of_presets = of_presets
        self.flag_of = flag_of
        self.dest_of = dest_of

    def _format_arg_name(self, config_attr_name: str, prefix: str | None = None) -> str:
        return self.flag_of(config_attr_name)

    def _extract_type(self, config_type: Any) -> dict[str, Any]:
        if typing.get_origin(config_type) is tuple:  # tuple[X, ...]
            return super()._extract_type(typing.get_args(config_type)[0]) | {"nargs": "+"}
        return super()._extract_type(config_type)

    def _build_argparse_kwargs_from_field(self, attribute: dataclasses.Field[Any]) -> dict[str, Any]:
        keywords = super()._build_argparse_kwargs_from_field(attribute)
        keywords["dest"] = self.dest_of(attribute.name)
        keywords["help"] = keywords["help"].replace("%", "%%")
        none = attribute.default is None and not self.of_presets
        says_it = none or attribute.default is False or "(default: " in keywords["help"]
        if not says_it:
            keywords["help"] += " (default: %(default)s)"  # of a preset, where there is one
        return keywords


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Megatron's `extra_args_provider`: the competition group, `--router`, and the defaults of a preset and a CPU host.

    The preset is read from `sys.argv`, which Megatron parses.
    """
    group = add_routing_arguments(parser)
    group.add_argument(
        "--compete-override-schedule",
        action="store_true",
        help="On resuming, take the competition schedule of these arguments where the checkpoint's is another.",
    )
    group.add_argument(
        "--relu",
        action="store_true",
        help="ReLU in MLPs and experts (two matrices), as in the authors' models; Megatron has no flag for it.",
    )
    SettingsGroup(VisionConfig, vision.flag_of, vision.dest_of).build_group(parser, title="vision-language models")
    SettingsGroup(ConversationConfig, conversations.flag_of, conversations.dest_of).build_group(
        parser, title="conversations with pictures"
    )
    _add_reliability_arguments(parser)
    add_probe_arguments(parser)
    escape_help(parser)
    parser.error = one_line_error  # type: ignore[method-assign]
    refuse_msc(sys.argv[1:])
    parser.set_defaults(**defaults_asked_for(sys.argv[1:]))
    parser.set_defaults(eval_interval=EVAL_INTERVAL)
    if cpu.is_needed():
        parser.set_defaults(**cpu.ARGUMENTS)
    return parser


def add_routing_arguments(parser: argparse.ArgumentParser, more: tuple[str, ...] = ()) -> "argparse._ArgumentGroup":
    """The flags that say how tokens are routed: `--router`, `--compete-*` and those of the baselines.

    Args:
        more: routers of this parser's own, beside those that every job has.
    Returns:
        The group of competition flags.
    """
    competition = SettingsGroup(CompeteConfig, flag_of, lambda field: PREFIX + field, of_presets=True)
    group = competition.build_group(parser, title="competition")
    group.add_argument(
        "--router",
        choices=("compete", "topk", *BASELINES, *more),
        default="compete",
        help="compete: MoE layers with competition routing; topk: Megatron's own layers, the plain baseline; others: "
        "Megatron's layers with a baseline router (docs/guides/routers.md).",
    )
    group.add_argument(
        "--compete-preset",
        choices=tuple(PRESETS),
        default=DEFAULT_PRESET,
        help="Recipe that the defaults of these flags, and of Megatron's that belong to it, are taken from. paper: arXiv "
        "2505.13380, for language; paper-vlm: the same for vision towers and projectors; recommended: a small sample at "
        "every step, at most 5%% of a step; scarce-data: all tokens at every step. A flag that is given wins over it.",
    )
    SettingsGroup(BaselineConfig, baseline_flag_of, lambda field: BASELINE_PREFIX + field).build_group(
        parser, title="baseline routers"
    )
    return group


def _add_reliability_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(title="reliability")
    group.add_argument(
        "--on-save-failure",
        choices=("stop", "continue"),
        default="stop",
        help="A checkpoint that cannot be saved (a full disk): stop: end the job, the older ones stay; continue: say so "
        "and try again at the next --save-interval.",
    )
    group.add_argument(
        "--stuck-timeout",
        type=float,
        default=STUCK_TIMEOUT,
        metavar="SECONDS",
        help="End the job, and name the rank, when ranks begin no microbatch for so long; three times as long while a "
        f"checkpoint is saved or loaded; 0: never (default: {STUCK_TIMEOUT:g})",
    )


def one_line_error(message: str) -> NoReturn:
    """argparse would print Megatron's thousand lines of usage first."""
    raise CompeteError(with_replacements(message))


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for arguments that cannot train; cheap, before any process group exists."""
    check_local_paths(args)
    VisionConfig.from_arguments(args)
    CompeteConfig.from_arguments(args)
    check_flags(args.router, BaselineConfig.from_arguments(args))
    for other in ("swiglu", "squared_relu", "quick_geglu"):
        if args.relu and getattr(args, other):
            raise CompeteError(f"--relu and --{other.replace('_', '-')} exclude each other: keep one")
    if args.stuck_timeout < 0:
        raise CompeteError(f"--stuck-timeout {args.stuck_timeout:g} is below 0: give seconds, or 0 to switch it off")
    check_refused(args)
    check_excluded(args)
    check_data_arguments(args)
    check_conversation_arguments(args)
    check_probe_arguments(args)
    if cpu.is_needed():
        _check_on_cpu(args)


def _check_on_cpu(args: argparse.Namespace) -> None:
    for name, value in cpu.ARGUMENTS.items():
        given = getattr(args, name)
        if given != value:
            raise CompeteError(f"{name} = {given} needs CUDA, and this host has none: leave it out to train on CPU")


def installed(module: str) -> bool:
    """Whether the module can be found; it is not imported, since that may need a device."""
    return importlib.util.find_spec(module) is not None


def check_installed(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for a CUDA package that these arguments need and this host lacks.

    Megatron would end in a traceback while it builds the model.
    """
    local_attention = args.transformer_impl == "local" and args.masked_softmax_fusion and (args.bf16 or args.fp16)
    kinds = set(args.hybrid_layer_pattern or "")
    delta_nets = Symbols.GDN in kinds or args.experimental_attention_variant == "gated_delta_net"
    for needed, module, way_out in (
        (args.transformer_impl == "transformer_engine", "transformer_engine", "--transformer-impl local"),
        (args.gradient_accumulation_fusion, GRADIENT_FUSION, "--no-gradient-accumulation-fusion"),
        (local_attention, SOFTMAX_FUSION, "--no-masked-softmax-fusion"),
        (Symbols.MAMBA in kinds, "mamba_ssm", "a --hybrid-layer-pattern without M"),
        (Symbols.MAMBA in kinds, "causal_conv1d", "a --hybrid-layer-pattern without M"),
        (delta_nets, "fla", "another attention than gated delta nets (it is of flash-linear-attention)"),
    ):
        if needed and not installed(module):
            raise CompeteError(f"Megatron needs the module {module} for this: install it, or give {way_out}")
