"""MTL-LoRA and MOELoRA as in their published code, with the parameters of this project's layers.

The functions are equal; the matrix products differ.

Shape legend: B rows, S tokens, D width in, O width out, R rank, N up-projections, E experts, Q rank of one
expert, T tasks.
"""

import torch
from torch import nn

from models.adapters.injection import adapted_layers
from models.adapters.moe_lora import MoELoRALinear
from models.adapters.mtl_lora import MTLLoRALinear


class PublishedMTLLoRALinear(nn.Module):
    """MTL-LoRA as in microsoft's code: each row has its own copy of all three matrices.

    Reference: Yang et al., AAAI 2025; src/adapter/mlora.py.
    """

    def __init__(self, layer: MTLLoRALinear) -> None:
        super().__init__()
        self.base, self.routing, self.scale = layer.base, layer.routing, layer.scale
        self.mixture_temperature = layer.config.mixture_temperature
        self.down_1RD = nn.Parameter(layer.down_RD.detach()[None].clone())
        self.transform_TRR = nn.Parameter(layer.transform.detach().clone())
        self.up_NOR = nn.Parameter(layer.up_ONR.detach().transpose(0, 1).contiguous())
        self.mix_TN = nn.Parameter(layer.mix_TN.detach().clone())

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Map (B, S, D) to (B, S, O)."""
        task_B = self.routing.current_tasks()
        shares_TN = torch.softmax(self.mix_TN / self.mixture_temperature, dim=-1)
        up_TOR = (shares_TN @ self.up_NOR.flatten(1)).unflatten(1, self.up_NOR.shape[1:])
        down_BRD = self.down_1RD.index_select(0, torch.zeros_like(task_B))
        transform_BRR = self.transform_TRR.index_select(0, task_B)
        up_BOR = up_TOR.index_select(0, task_B)
        u_BSR = torch.bmm(x_BSD, down_BRD.to(x_BSD.dtype).transpose(1, 2))
        z_BSR = torch.bmm(u_BSR, transform_BRR.to(x_BSD.dtype).transpose(1, 2))
        y_BSO = self.base(x_BSD)
        # 1.0 is a tunable scaler that is off; the published code multiplies by it too
        y_BSO += torch.bmm(z_BSR, up_BOR.to(x_BSD.dtype).transpose(1, 2)) * self.scale * 1.0
        return y_BSO


class PublishedMoELoRALinear(nn.Module):
    """MOELoRA as in its authors' code: a loop over the experts, each a complete LoRA.

    Reference: Liu et al., SIGIR 2024; peft/tuners/mmoelora.py.
    """

    def __init__(self, layer: MoELoRALinear) -> None:
        super().__init__()
        self.base, self.routing, self.scale = layer.base, layer.routing, layer.scale
        expert_rank = layer.config.rank // layer.config.num_experts
        self.down_EQD = nn.ParameterList(down.clone() for down in layer.down_RD.detach().split(expert_rank))
        self.up_EOQ = nn.ParameterList(up.clone() for up in layer.up_OR.detach().split(expert_rank, dim=1))
        self.task_TV = nn.Parameter(layer.task_TV.detach().clone())
        self.gate_EV = nn.Parameter(layer.gate_EV.detach().clone())

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """Map (B, S, D) to (B, S, O)."""
        y_BSO = self.base(x_BSD)
        weight_BE = torch.softmax(self.task_TV[self.routing.current_tasks()] @ self.gate_EV.t(), dim=-1).to(
            x_BSD.dtype
        )
        for expert, (down_QD, up_OQ) in enumerate(zip(self.down_EQD, self.up_EOQ, strict=True)):
            z_BSQ = nn.functional.linear(x_BSD, down_QD.to(x_BSD.dtype))
            y_BSO += (
                nn.functional.linear(z_BSQ, up_OQ.to(x_BSD.dtype))
                * self.scale
                * weight_BE[:, expert, None, None]
            )
        return y_BSO


PUBLISHED: dict[type[nn.Module], type[nn.Module]] = {
    MTLLoRALinear: PublishedMTLLoRALinear,
    MoELoRALinear: PublishedMoELoRALinear,
}


def as_published(trunk: nn.Module) -> nn.Module:
    """Replace the adapted layers of a trunk by their published form, in place.

    Raises:
        KeyError: The method has no published form here.
    """
    for name, layer in adapted_layers(trunk).items():
        trunk.set_submodule(name, PUBLISHED[type(layer)](layer))
    return trunk
