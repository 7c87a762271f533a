"""A LLaVA whose vision tower and projector may mix experts (CompeteSMoE, arXiv 2505.13380).

Competition, in which all experts answer and the best win, shapes the routers in training only. What is left is a router
that sends every patch to its K best experts and weights their outputs. All else is transformers' own LLaVA. Legend of
shapes: T patches, H hidden size, E experts, K experts a patch.
"""

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration
from transformers.activations import ACT2FN

from .configuration_competellava import CompeteLlavaConfig


class CompeteLlavaMLP(nn.Module):
    """second(act(first(x))), with the names of the layers that it stands for."""

    def __init__(self, names, inputs, width, outputs, act):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Linear(inputs, width))
        self.add_module(names[1], nn.Linear(width, outputs))
        self.act = ACT2FN[act]

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(self.act(first(x)))


class CompeteLlavaMixture(nn.Module):
    """Experts behind a router: each patch takes its K best, weighted by a softmax over their logits."""

    def __init__(self, config, make_expert, inputs, outputs):
        super().__init__()
        self.outputs = outputs
        self.top_k = config.num_experts_per_tok
        self.in_fp32 = config.router_in_fp32
        self.gate = nn.Linear(inputs, config.num_experts, bias=False)
        self.experts = nn.ModuleList(make_expert() for _ in range(config.num_experts))

    def forward(self, x):
        x_TH = x.reshape(-1, x.shape[-1])
        weights_TK, chosen_TK = self.route(x_TH)
        output = x_TH.new_zeros(len(x_TH), self.outputs)
        for number, expert in enumerate(self.experts):
            rows, slots = (chosen_TK == number).nonzero(as_tuple=True)
            answers = expert(x_TH[rows]) * weights_TK[rows, slots, None].to(x.dtype)
            output = output.index_add(0, rows, answers.to(x.dtype))
        return output.view(*x.shape[:-1], -1)

    def route(self, x_TH):
        """Weights [T, K] that sum to 1, and the experts' numbers."""
        if self.in_fp32:
            logits_TE = nn.functional.linear(x_TH.float(), self.gate.weight.float())
        else:
            logits_TE = self.gate(x_TH)
        best_TK, chosen_TK = logits_TE.topk(self.top_k, dim=-1)
        return best_TK.softmax(dim=-1, dtype=torch.float32), chosen_TK


def tower_mlp(config):
    """An MLP of the tower's."""
    vision = config.vision_config
    sizes = vision.hidden_size, vision.intermediate_size, vision.hidden_size
    return CompeteLlavaMLP(("fc1", "fc2"), *sizes, vision.hidden_act)


def projector_mlp(config):
    """An MLP from the tower's width to the language model's."""
    sizes = config.vision_config.hidden_size, config.projector_intermediate_size, config.text_config.hidden_size
    return CompeteLlavaMLP(("linear_1", "linear_2"), *sizes, config.projector_hidden_act)


class CompeteLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA with mixtures in the place of MLPs."""

    config_class = CompeteLlavaConfig
    config: CompeteLlavaConfig
    _no_split_modules = None

    def __init__(self, config):
        super().__init__(config)
        inputs, outputs = config.vision_config.hidden_size, config.text_config.hidden_size
        if "vision" in config.experts_in:
            for name, module in self.model.vision_tower.named_modules():
                if name.rpartition(".")[0].endswith("encoder.layers"):
                    module.mlp = CompeteLlavaMixture(config, lambda: tower_mlp(config), inputs, inputs)
        if "projector" in config.experts_in:
            self.model.multi_modal_projector = CompeteLlavaMixture(
                config, lambda: projector_mlp(config), inputs, outputs
            )
        else:
            self.model.multi_modal_projector = projector_mlp(config)
        self.post_init()
