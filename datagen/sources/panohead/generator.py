"""The generator: latents to styles, styles to feature planes, and planes to points and images."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.identity import Identity, Synthesis, join
from datagen.sources.panohead.layers import Mapping, Noise, StyledNetwork, StyledRGB
from datagen.sources.panohead.planes import FeaturePlanes, TriGrid
from datagen.sources.panohead.renderer import EVEN, Decoder, Jitter, Renderer
from datagen.sources.panohead.superresolution import Superresolution
from geometry.cameras import from_eg3d_labels

FEATURES = 32
PLANES = 3
PARSING_CLASSES = 20


class Backbone(nn.Module):
    """A mapping network and the synthesis network it styles."""

    def __init__(self, mapping: Mapping, synthesis: StyledNetwork):
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis


class Generator(nn.Module):
    """PanoHead's generator; its methods keep no state and draw no random numbers."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config

        def network(resolution: int, channels: int, base: int) -> StyledNetwork:
            return StyledNetwork(config.w_dim, resolution, channels, base, config.channel_max, config.conv_clamp)

        self.backbone = Backbone(
            Mapping(config.z_dim, 25, config.w_dim, config.mapping_layers),
            network(config.plane_resolution, self.backbone_channels(), config.channel_base),
        )
        self.superresolution = Superresolution(
            config.sr, config.resolution, config.sr_w_dim, config.sr_channels, FEATURES, config.sr_clamp,
            config.sr_antialias,
        )  # fmt: skip
        self.decoder = Decoder(FEATURES, config.decoder_lr, config.decoder_activation)
        self.torgb = StyledRGB(FEATURES, 3, config.w_dim) if config.use_torgb else None
        self.toparsing = StyledRGB(FEATURES, PARSING_CLASSES, config.w_dim) if config.parsing else None
        self.bcg_synthesis = None
        if config.use_background:
            self.bcg_synthesis = network(self.superresolution.input_resolution, FEATURES, config.channel_base // 2)
        self.t_mapping = Mapping(config.z_dim, 25, 3, config.mapping_layers, lr=1.0, last="linear")

    def backbone_channels(self) -> int:
        return PLANES * FEATURES * self.config.plane_depth

    @property
    def num_ws(self) -> int:
        return self.backbone.synthesis.num_ws

    @torch.no_grad()
    def mapping(
        self, z: Float[Tensor, "b z"], labels: Float[Tensor, "b 25"], psi: float = 1.0, cutoff: int | None = None
    ) -> Float[Tensor, "b l s"]:
        """Styles of latents seen from conditioning cameras, the first `cutoff` of them (None: all) truncated by psi."""
        return self.backbone.mapping(z, self._conditioning(labels), self.num_ws, psi, cutoff)

    @torch.no_grad()
    def delta_c(
        self, z: Float[Tensor, "b z"], labels: Float[Tensor, "b 25"], psi: float = 1.0, cutoff: int | None = None
    ) -> Float[Tensor, "b 3"]:
        """The translation that the network predicts for each camera, in world units."""
        return self.t_mapping(z, self._conditioning(labels), 1, psi, cutoff)[:, 0]

    def apply_delta_c(
        self, z: Float[Tensor, "b z"], labels: Float[Tensor, "b 25"], psi: float = 1.0, cutoff: int | None = None
    ) -> Float[Tensor, "b 25"]:
        """Labels with their cameras moved by `delta_c`."""
        moved = labels.clone()
        moved[:, [3, 7, 11]] += self.delta_c(z, labels, psi, cutoff)
        return moved

    def _conditioning(self, labels: Float[Tensor, "b 25"]) -> Float[Tensor, "b 25"]:
        return torch.zeros_like(labels) if self.config.zero_conditioning else labels * self.config.c_scale

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """The shape of the planes of one identity."""
        size = self.config.plane_resolution
        return PLANES, FEATURES, self.config.plane_depth, size, size

    def planes(self, ws: Float[Tensor, "b l s"], noise: Noise = "const") -> Float[Tensor, "b p c d h w"]:
        """The feature planes: p planes of c features in d layers."""
        return self.backbone.synthesis(ws, noise).unflatten(1, (PLANES, FEATURES, self.config.plane_depth))

    def field(self, planes: Float[Tensor, "p c d h w"]) -> FeaturePlanes:
        """The feature field of one identity's planes."""
        return TriGrid(planes, self.config.plane_axes, self.config.box_warp)

    @torch.no_grad()
    def features(self, planes: Tensor, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b p n c"]:
        """Features of world points, plane by plane."""
        return torch.stack([self.field(one).per_plane(at) for one, at in zip(planes, points, strict=True)])

    @torch.no_grad()
    def decode(self, features: Float[Tensor, "b p n c"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n c"]]:
        """Raw density and colour features of plane features."""
        decoded = [self.decoder(mean) for mean in features.mean(dim=1)]
        return torch.stack([sigma for sigma, _ in decoded]), torch.stack([colour for _, colour in decoded])

    @torch.no_grad()
    def density(self, planes: Tensor, points: Float[Tensor, "b n 3"], chunk: int = 1 << 18) -> Float[Tensor, "b n"]:
        """Raw density at world points, without the renderer's crop: the `sigma` of the official `sample`."""
        parts = [self.decode(self.features(planes, part))[0] for part in points.split(chunk, dim=1)]
        return torch.cat(parts, dim=1)

    def background(self, ws: Float[Tensor, "b l s"], noise: Noise = "const") -> Float[Tensor, "b c h w"]:
        """The background in feature space, at the input resolution of the super-resolution."""
        assert self.bcg_synthesis is not None, "a checkpoint without a background network"
        missing = self.bcg_synthesis.num_ws - ws.shape[1]
        if missing > 0:
            ws = torch.cat([ws, ws[:, -1:].expand(-1, missing, -1)], dim=1)
        return self.bcg_synthesis(ws[:, : self.bcg_synthesis.num_ws], noise)

    def identity(
        self,
        ws: Float[Tensor, "1 l s"],
        ws_bcg: Float[Tensor, "1 m s"] | None = None,
        noise: Noise = "const",
        planes: Tensor | None = None,
    ) -> Identity:
        """One identity, ready to be rendered: its planes (or those given), its background and all of its styles."""
        last, sr_noise = ws[0, -1], "const" if self.config.sr_noise == "const" else "none"
        return Identity(
            config=self.config,
            renderer=Renderer(
                self.config, self.decoder, self.field(self.planes(ws, noise)[0] if planes is None else planes)
            ),
            background=self.background(ws if ws_bcg is None else ws_bcg, noise) if self.bcg_synthesis else None,
            to_rgb=self.torgb.at(last) if self.torgb else None,
            upscaler=self.superresolution.at(last, sr_noise),
            to_parsing=self.toparsing.at(last) if self.toparsing else None,
        )

    def synthesis(
        self,
        ws: Float[Tensor, "b l s"],
        labels: Float[Tensor, "b 25"],
        neural_resolution: int | None = None,
        ws_bcg: Float[Tensor, "b m s"] | None = None,
        noise: Noise = "const",
        jitter: Jitter = EVEN,
    ) -> Synthesis:
        """Render one view of each of b identities, as the official `synthesis`.

        The jitter's tensors have a row for every ray, identity by identity. A neural resolution given here holds for
        this call; the official network would keep it for the next.
        """
        cameras, count = from_eg3d_labels(labels), (neural_resolution or self.config.neural_resolution) ** 2
        seen = []
        for i in range(len(ws)):
            one = slice(i, i + 1)
            identity = self.identity(ws[one], None if ws_bcg is None else ws_bcg[one], noise)
            seen.append(identity.views(cameras[one], neural_resolution, jitter[i * count : (i + 1) * count]))
        return join(seen)

    def forward(
        self,
        z: Float[Tensor, "b z"],
        labels: Float[Tensor, "b 25"],
        psi: float = 1.0,
        cutoff: int | None = None,
        jitter: Jitter = EVEN,
    ) -> Synthesis:
        """The official `forward`: conditioned on the camera that renders, which is then moved by `delta_c`."""
        ws = self.mapping(z, labels, psi, cutoff)
        return self.synthesis(ws, self.apply_delta_c(z, labels, psi, cutoff), jitter=jitter)
