from pathlib import Path

import pytest
import torch
from hashed import hashed
from official import load_hashed
from safetensors.torch import load_file
from torch import Tensor, nn

from train.families.spinmeround.config import SpinMeRoundConfig
from train.families.spinmeround.model import SpinMeRoundNetwork
from train.networks.config import Stem, UNetShape
from train.networks.unet import build_unet, checkpoint_activations, compile_blocks, expand_channels, run_unet
from train.weights.names import UNET

TINY = Path(__file__).parents[2] / "golden" / "spinmeround_unet.safetensors"
SMALL = UNetShape(channels=(16, 32), attention=(True, True), blocks=1, heads=2, context=12, groups=8)


def run(unet: nn.Module, x: Tensor, condition: Tensor, *args, **kwargs) -> Tensor:
    """The UNet over latents and condition channels."""
    return run_unet(unet, torch.cat([x, condition], 2), *args, **kwargs)


def attention_layers(unet: nn.Module, joint: bool) -> list[str]:
    """The self-attention layers that attend across views, or those that do not."""
    processors = unet.attn_processors.values()
    return [p.name for p in processors if p.name.endswith("attn1") and p.joint == joint]


@pytest.fixture(scope="module")
def official() -> nn.Module:
    """The tiny network of the golden file, its weights hashed under their official names."""
    network = build_unet(UNetShape(channels=(32, 64, 128, 128), context=24), 29, 8)
    load_hashed(UNET, network)
    return network.eval()


def inputs() -> tuple[Tensor, Tensor]:
    return hashed("unet.x", (6, 29, 16, 16), 1.7), hashed("unet.ctx", (6, 5, 24))


@pytest.mark.parametrize("views", [1, 3])
def test_equals_the_official_network(official, views):
    golden, (x, context) = load_file(TINY), inputs()
    x = x.reshape(6 // views, views, 29, 16, 16)
    with torch.inference_mode():
        # The golden run gives every view its own level and context; scenes of several views share those of their first.
        if views == 1:
            out = run(official, x[:, :, :8], x[:, :, 8:], golden["timesteps"], context)
            assert torch.allclose(out.flatten(0, 1), golden["out_views1"], atol=1e-4)
            return
        raw = official(
            x.flatten(0, 1), golden["timesteps"], context, cross_attention_kwargs={"views": views}, return_dict=False
        )[0]
    assert torch.allclose(raw, golden["out_views3"], atol=1e-4)


def test_levels_from_the_second_on_attend_across_views(official):
    per_view = attention_layers(official, joint=False)
    assert len(per_view) == 5
    assert all(name.startswith(("down_blocks.0", "up_blocks.3")) for name in per_view)
    joint = attention_layers(official, joint=True)
    assert len(joint) == 11
    assert sum(name.startswith("mid_block") for name in joint) == 1


@pytest.fixture
def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(SMALL, 15, 8)


def scene(b: int = 2, v: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return draw(b, v, 8, 8, 8), draw(b, v, 7, 8, 8), draw(b), draw(b, 2, 12)


def test_views_have_no_order(small):
    x, condition, level, context = scene()
    turned = torch.tensor([2, 0, 1])
    with torch.no_grad():
        straight = run(small, x, condition, level, context)
        assert torch.allclose(
            run(small, x[:, turned], condition[:, turned], level, context), straight[:, turned], atol=1e-5
        )


def test_views_know_of_each_other_and_scenes_do_not(small):
    x, condition, level, context = scene()
    other = x.clone()
    other[0, 2] += 1
    with torch.no_grad():
        before, after = (run(small, each, condition, level, context) for each in (x, other))
    assert (before[0, :2] - after[0, :2]).abs().max() > 1e-4
    assert torch.equal(before[1], after[1])


def test_checkpointing_activations_keeps_views_together(small):
    """The released code falls back to attention per view here."""
    args = scene()

    def gradients() -> tuple[Tensor, list[Tensor]]:
        small.zero_grad()
        out = run(small, *args)
        out.square().mean().backward()
        return out.detach(), [weight.grad.clone() for weight in small.parameters()]

    out, plain = gradients()
    checkpoint_activations(nn.ModuleDict({"unet": small}))
    again, checkpointed = gradients()
    assert torch.equal(out, again)
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_compiled_blocks_do_the_same_and_keep_their_names(monkeypatch):
    """The blocks are captured as graphs; what torch makes of these takes minutes of C++ and is its own affair."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **options: compiled(*args, backend="aot_eager", **options))
    shape = UNetShape(channels=(16,), attention=(False,), blocks=1, heads=2, context=12, groups=8)
    network = build_unet(shape, 15, 8)
    x, condition, level, context = scene(v=2)
    names = list(network.state_dict())
    with torch.no_grad():
        plain = run(network, x, condition, level, context)
        compile_blocks(network)
        assert torch.allclose(run(network, x, condition, level, context), plain, atol=1e-5)
    assert list(network.state_dict()) == names


def test_banks_are_further_tokens_of_self_attention(small):
    x, condition, level, context = scene()
    layer = attention_layers(small, joint=True)[0]
    width = small.get_submodule(layer).to_k.in_features
    bank = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        without, with_it = (run(small, x, condition, level, context, banks) for banks in (None, {layer: bank}))
        twice = run(small, x, condition, level, context, {layer: bank.flip(1)})
        projected = []
        small.get_submodule(layer).to_k.register_forward_pre_hook(lambda module, given: projected.append(given[0]))
        run(small, x, condition, level, context, {layer: bank})
    # Once per scene, not once per view.
    assert [tuple(t.shape) for t in projected if t.shape[1] == 5] == [(2, 5, width)]
    assert (without - with_it).abs().max() > 1e-4
    assert torch.allclose(with_it, twice, atol=1e-5)  # tokens have no order


def test_residuals_are_added_to_skips_and_middle(small):
    """As a ControlNet gives them, by the names of diffusers."""
    args, skips, middle = scene(), [], []
    hooks = [
        small.conv_in.register_forward_hook(lambda module, given, out: skips.append(out)),
        *(b.register_forward_hook(lambda module, given, out: skips.extend(out[1])) for b in small.down_blocks),
        small.mid_block.register_forward_hook(lambda module, given, out: middle.append(out)),
    ]
    with torch.no_grad():
        plain = run(small, *args)
        for hook in hooks:
            hook.remove()
        names = ("down_block_additional_residuals", "mid_block_additional_residual")
        none = dict(zip(names, (tuple(map(torch.zeros_like, skips)), torch.zeros_like(middle[0])), strict=True))
        assert torch.equal(run(small, *args, residuals=none), plain)
        for name, some in zip(names, (tuple(map(torch.ones_like, skips)), torch.ones_like(middle[0])), strict=True):
            assert (run(small, *args, residuals={**none, name: some}) - plain).abs().max() > 1e-4, name


def test_a_wider_stem_begins_as_the_old_one():
    old = build_unet(SMALL, 4, 4)
    new = build_unet(SMALL, 15, 8)
    grown = expand_channels(old.state_dict(), new, 8, Stem(pose_init="zero", scale=0.5))
    new.load_state_dict(grown)
    x, _, level, context = scene(v=1)
    image = x[:, :, :4]
    with torch.no_grad():
        before = run(old, image, torch.zeros(2, 1, 0, 8, 8), level, context)
        # With the image in both places and half of the weights each, the network does what it did.
        after = run(new, torch.cat([image, image], 2), torch.randn(2, 1, 7, 8, 8), level, context)
    assert torch.allclose(after[:, :, :4], before, atol=1e-5)
    assert torch.equal(after[:, :, :4], after[:, :, 4:])


def test_new_channels_are_drawn_as_pytorch_draws_them():
    old, new = build_unet(SMALL, 4, 4), build_unet(SMALL, 15, 8)
    weight = expand_channels(old.state_dict(), new, 8, Stem())["conv_in.weight"]
    bound = (15 * 9) ** -0.5
    assert weight[:, 8:].abs().max() <= bound
    assert weight[:, 8:].std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert torch.equal(weight[:, :4], weight[:, 4:8])


def test_without_normals_rays_are_not_taken_for_them():
    old, new = build_unet(SMALL, 4, 4), build_unet(SMALL, 11, 4)
    weight = expand_channels(old.state_dict(), new, 4, Stem(pose_init="zero"))["conv_in.weight"]
    assert torch.equal(weight[:, :4], old.conv_in.weight)
    assert not weight[:, 4:].any()


def test_a_stem_of_another_kind_is_refused():
    new = build_unet(SMALL, 15, 8)
    wrong = {**new.state_dict(), "conv_in.weight": torch.zeros(16, 9, 3, 3)}
    with pytest.raises(ValueError, match=r"conv_in.weight is \(16, 9, 3, 3\).*give a 4-channel UNet"):
        expand_channels(wrong, new, 8, Stem())


def test_the_released_size():
    with torch.device("meta"):
        network = SpinMeRoundNetwork(SpinMeRoundConfig())
    assert sum(weight.numel() for weight in network.parameters()) == 859_961_608
    assert len(network.unet.state_dict()) == 686


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": (16, 32), "attention": (True,)}, "unet.channels has 2 levels and unet.attention 1"),
        ({"channels": (20, 32)}, "20 channels do not divide into 8 groups"),
    ],
)
def test_shapes_that_cannot_be(change, says):
    fields = {"channels": (16, 32), "attention": (True, True), "heads": 2, "groups": 8, **change}
    with pytest.raises(ValueError, match=says):
        UNetShape(**fields)
