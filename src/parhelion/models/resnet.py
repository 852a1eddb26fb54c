"""The one skeleton: stem, stages of bottlenecks, head. What differs between the networks are numbers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from torch import fx, nn

from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.layers.activations import ACTIVATIONS
from parhelion.layers.bottleneck import Bottleneck
from parhelion.layers.choices import stem_reduction
from parhelion.layers.stems import stem_convolution, stem_pool
from parhelion.models.network import Network
from parhelion.models.timm_features import FeatureMaps, feature_take_indices
from parhelion.shapes import Float, Tensor


class ResNet(nn.Module):
    """A `Network` as a module, with the methods that users of timm rely on.

    Images are (B, in_chans, H, W), any H and W of at least `min_px`; logits are (B, num_classes).
    """

    default_cfg: dict[str, Any]  # what timm's transforms and tools read off a model; set by `create_model`
    pretrained_cfg: dict[str, Any]
    _model_args: dict[
        str, Any
    ]  # how timm.create_model builds the network again; set by `create_model`, kept by `resize`

    def __init__(
        self,
        network: Network,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: tuple[int, int] = (224, 224),
        drop_path: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Build the network.

        Args:
            network: The description.
            num_classes: Width of the classifier; 0 leaves it out, and the pooled features come out.
            in_chans: Channels of the image.
            image_size: Height and width the relative tables of global attention are made for.
            drop_path: Stochastic depth: the rate of the last block, rising linearly from 0 at the first.
            drop_rate: Dropout before the classifier.
            global_pool: How the last map is pooled, in timm's words; "" leaves the map as it is.
        """
        super().__init__()
        self.network, self.num_classes, self.in_chans = network, num_classes, in_chans
        self.min_px = network.reduction
        self.grad_checkpointing = False
        self.stem = stem_convolution(network.stem, in_chans, network.stem_width, network.act)
        self.pool = stem_pool(network.stem)
        self.stages = _build_stages(network, image_size)
        rates = torch.linspace(0, drop_path, len(self.bottlenecks), device="cpu").tolist()
        for block, rate in zip(self.bottlenecks, rates, strict=True):
            block.set_drop_path(rate)
        self.num_features = self.head_hidden_size = network.head_width or network.stages[-1].dim_out
        self.final = _final_convolution(network)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.feature_info = _feature_info(network)
        self._init_convolutions()

    @property
    def parts(self) -> list[nn.Module]:
        """The stem and every stage, from the image on."""
        return [self.stem, *self.stages]

    @property
    def bottlenecks(self) -> list[Bottleneck]:
        """All residual blocks, from the image to the classifier."""
        return [module for module in self.stages.modules() if isinstance(module, Bottleneck)]

    @property
    def operators(self) -> list[nn.Module]:
        """The spatial operator of every residual block: a convolution or an attention layer."""
        return [bottleneck.operator for bottleneck in self.bottlenecks]

    def _init_convolutions(self) -> None:
        """Draw convolutions as ResNets do; attention layers have drawn their own."""
        attention = (GlobalSelfAttention, HaloAttention)
        owned = {id(child) for module in self.modules() if isinstance(module, attention) for child in module.modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in owned:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _take_in(self, x: Tensor) -> Tensor:
        """The stem's map, before any pooling."""
        return self.stem(_large_enough(x, self.min_px))

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f fh fw"]:
        """The last map, (B, num_features, ceil(H/reduction), ceil(W/reduction))."""
        x = self.pool(self._take_in(x))
        for stage in self.stages:
            x = self._run(stage, x)
        return self.final(x)

    def forward_head(self, x: Float[Tensor, "b f h w"], pre_logits: bool = False) -> Tensor:
        """Logits of a last map; with `pre_logits` the pooled features that the classifier would read."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps listed in `feature_info`, as timm's feature wrappers ask for them.

        Args:
            x: Images.
            indices: Which maps: the last n if an int, all if None.
            norm: Accepted for timm's sake: every map here comes out of a normalised block already.
            stop_early: Leave out what comes after the last map asked for.
            output_fmt: "NCHW" is the only one.
            intermediates_only: Return the maps without the final one of `forward_features`.

        Raises:
            ValueError: another `output_fmt`, or an image smaller than `min_px`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        stem_counts = len(self.feature_info) - len(self.network.stages)
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        x = self._take_in(x)
        maps = [x] if stem_counts else []
        x = self.pool(x)
        stages = self.stages[: last + 1 - stem_counts] if stop_early or intermediates_only else self.stages
        for stage in stages:
            x = self._run(stage, x)
            maps.append(x)
        maps = [feature for index, feature in enumerate(maps) if index in wanted]
        return maps if intermediates_only else (self.final(x), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last map asked for, and the head; the normalised indices come back."""
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        stem_counts = len(self.feature_info) - len(self.network.stages)
        self.stages = self.stages[: last + 1 - stem_counts]
        self.final = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The last linear layer (an identity when `num_classes` is 0)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of another width, or none (0), in place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each block for the backward pass of training, and compute the block again there.

        Batch statistics are then updated twice per step, as in timm.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How parameters group into layers, for timm's layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def resize(
        self, *, block: int | None = None, halo: int | None = None, image_size: tuple[int, int] | None = None
    ) -> None:
        """Adapt a trained network to another window or image: relative tables are interpolated, the rest stays.

        Args:
            block: New block of every halo attention, in pixels of its map.
            halo: New halo of every halo attention.
            image_size: New height and width that the tables of global attention are made for.

        Raises:
            ValueError: a window that `halo_attention` refuses.
        """
        sizes = itertools.chain(*self.network.sizes(image_size)) if image_size else itertools.repeat(None)
        changed: dict[str, Any] = {"img_size": image_size}
        # A network that was cut after its last map has fewer blocks than its description.
        for operator, size in zip(self.operators, sizes, strict=False):
            if isinstance(operator, HaloAttention):
                operator.resize(block=block, halo=halo)
                changed |= {"block": block, "halo": halo}
            elif isinstance(operator, GlobalSelfAttention) and size is not None:
                operator.resize(size)
        changed = {name: value for name, value in changed.items() if value is not None}
        self._model_args = {**getattr(self, "_model_args", {}), **changed}

    def has_tables_for(self, image_size: tuple[int, int]) -> bool:
        """Whether the tables of global attention, if there are any, are made for images of `image_size` (h, w)."""
        sizes = itertools.chain(*self.network.sizes(image_size))
        return all(
            operator.size == size
            for operator, size in zip(self.operators, sizes, strict=False)
            if isinstance(operator, GlobalSelfAttention)
        )


def network_in(module: nn.Module) -> ResNet | None:
    """The Parhelion network that `module` is, or that timm's feature extractor `module` wraps; None for others."""
    inner = module.model if isinstance(module, FeatureMaps) else module
    return inner if isinstance(inner, ResNet) else None


@fx.wrap
def _large_enough(x: Tensor, min_px: int) -> Tensor:
    """The images themselves; ValueError if a side has fewer pixels than `min_px`."""
    # Side by side, not the smaller one: torch.export would ask which one that is.
    if x.shape[-2] < min_px or x.shape[-1] < min_px:
        raise ValueError(
            f"an image of {x.shape[-2]}x{x.shape[-1]} pixels is too small: "
            f"this network halves it down to 1/{min_px}, so each side needs at least {min_px} pixels"
        )
    return x


def _build_stages(network: Network, image_size: tuple[int, int]) -> nn.Sequential:
    stages, dim = [], network.stem_width
    for stage, sizes in zip(network.stages, network.sizes(image_size), strict=True):
        blocks = []
        for index, size in enumerate(sizes):
            block = Bottleneck(
                dim,
                stage.width,
                stage.dim_out,
                stage.operator,
                stride=stage.stride if index == 0 else 1,
                size=size,
                act=network.act,
                se_ratio=stage.se_ratio,
            )
            if network.zero_init_last:
                nn.init.zeros_(block.norm3.weight)
            blocks.append(block)
            dim = stage.dim_out
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _final_convolution(network: Network) -> nn.Module:
    if network.head_width is None:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(network.stages[-1].dim_out, network.head_width, 1, bias=False),
        nn.BatchNorm2d(network.head_width),
        ACTIVATIONS[network.act](inplace=True),
    )


def _feature_info(network: Network) -> list[dict[str, Any]]:
    """The maps a detector may ask for: the stem's, where a pool follows it, and every stage's."""
    reduction = stem_reduction(network.stem)
    info: list[dict[str, Any]] = []
    if network.stem == "conv7":
        info.append({"num_chs": network.stem_width, "reduction": reduction // 2, "module": "stem"})
    for index, stage in enumerate(network.stages):
        reduction *= stage.stride
        info.append({"num_chs": stage.dim_out, "reduction": reduction, "module": f"stages.{index}"})
    return info
