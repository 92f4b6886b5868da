"""From a photo to what a model reads, through insightface's own classes with tiny models."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import write_recogniser
from tiny_faces import POINTS, half_side, mark, write_detector, write_landmarks

from datagen.sources.procedural import ProceduralSource
from faces.alignment import Frame, crop, ffhq_frame, in_crop
from faces.config import FaceConfig, MatteConfig
from faces.landmarks import crops
from faces.matte import BiSeNet
from faces.models import load_arcface, load_face_models
from geometry.cameras import from_view_rotation, orbit, spinmeround_rotation
from infer.config import PortraitConfig
from infer.photo import read_photo
from infer.portrait import PhotoPreprocessor, Portrait, load_preprocessor
from weights.embedded import EMBEDDED

BACKGROUND = (190, 200, 210)
AT, BLUE = (10, 9), 230
"""Cell and size of the face of the scene's head."""
UP = np.array([1.0, -1.0, 1.0])


def turn(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    angles = (torch.tensor([value], dtype=torch.float64) for value in (pitch, yaw, roll))
    return spinmeround_rotation(*angles)[0].numpy()


def models(folder: Path, rotation: np.ndarray | None = None, size: float = 1.0) -> Path:
    """A folder like antelopev2; its landmark model sees the mean face with a turn, in half crops (1.5 boxes)."""
    from insightface.data import get_object

    folder.mkdir(exist_ok=True)
    write_detector(folder / "scrfd_10g_bnkps.onnx")
    face = get_object("meanshape_68.pkl") * UP @ (turn() if rotation is None else rotation).T * UP
    write_landmarks(folder / "1k3d68.onnx", size * face)
    write_recogniser(folder / "arcface.onnx", dimensions=512)
    return folder


@pytest.fixture(scope="module")
def antelope(tmp_path_factory) -> Path:
    return models(tmp_path_factory.mktemp("models") / "antelopev2")


def scene(*faces: tuple[int, int, int]) -> np.ndarray:
    """A dark head on a plain background, and faces: cell's column, row, and blue."""
    picture = np.full((640, 640, 3), BACKGROUND, np.uint8)
    y, x = np.mgrid[:640, :640]
    picture[((x - 320) / 130) ** 2 + ((y - 300) / 170) ** 2 < 1] = (90, 60, 40)
    picture[440:, 220:420] = (60, 60, 90)
    for column, row, blue in faces:
        mark(picture, column, row, blue)
    return picture


def saved(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def preprocessor(antelope: Path, **options) -> PhotoPreprocessor:
    return load_preprocessor(
        PortraitConfig(**{"matte": MatteConfig(uniform=True), "face": FaceConfig(str(antelope)), **options})
    )


def check(portrait: Portrait) -> None:
    assert portrait.rgb.shape == (3, 512, 512) and portrait.alpha.shape == (512, 512)
    assert portrait.rgb.dtype == portrait.alpha.dtype == portrait.c2w.dtype == torch.float32
    assert portrait.rgb.min() >= -1 and portrait.rgb.max() <= 1
    assert (portrait.rgb[:, portrait.alpha == 0] == 1).all(), "the background is white"
    assert (portrait.identity is None) == bool(portrait.without_identity)
    if portrait.identity is not None:
        assert portrait.identity.shape == (512,) and portrait.identity.norm() == pytest.approx(1, abs=1e-5)


def test_a_photo_becomes_a_portrait(antelope, tmp_path):
    picture = scene((*AT, BLUE))
    one = preprocessor(antelope)(read_photo(saved(tmp_path / "photo.png", picture)))
    check(one)
    assert one.notes == ()
    torch.testing.assert_close(one.c2w, orbit(np.zeros(1), np.zeros(1)).c2w[0], atol=1e-3, rtol=0)
    assert 0.2 < one.alpha.mean() < 0.9
    # By hand: the square of FFHQ around the detector's points, then what the mean face asks.
    half, corner = half_side(BLUE), 32.0 * np.array(AT)
    points = corner + POINTS * half
    frame = ffhq_frame(points)
    unit = 1.5 * half  # half a crop of 1.5 boxes
    middle = corner + unit * np.array([0.0, -0.06])
    refined = Frame(middle, frame.right * unit / 1.6 / half, frame.down * unit / 1.6 / half)
    expected = torch.from_numpy(crop(picture, refined)).permute(2, 0, 1) / 127.5 - 1
    assert (one.rgb - expected)[:, one.alpha == 1].abs().mean() < 0.01
    white = ((one.rgb + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    aligned = crops(white[None], in_crop(points, refined)[None].astype(np.float32))
    expected = load_arcface(str(antelope / "arcface.onnx")).embed(aligned)[0]
    assert one.identity is not None and float(one.identity @ torch.from_numpy(expected)) > 0.999


def test_the_camera_is_that_of_the_landmarks(tmp_path):
    rotation = turn(30, -10, 5)
    folder = models(tmp_path / "turned", rotation)
    one = preprocessor(folder)(read_photo(saved(tmp_path / "photo.png", scene((*AT, BLUE)))))
    check(one)
    expected = from_view_rotation(torch.from_numpy(rotation).float()[None]).c2w[0]
    torch.testing.assert_close(one.c2w, expected, atol=1e-3, rtol=0)


def test_of_several_faces_the_largest_is_taken(antelope, tmp_path):
    make = preprocessor(antelope)
    alone = make(read_photo(saved(tmp_path / "one.png", scene((*AT, BLUE)))))
    two = make(read_photo(saved(tmp_path / "two.png", scene((2, 3, 40), (*AT, BLUE), (17, 3, 20)))))
    assert two.notes == ("3 faces, the largest was taken",)
    assert torch.equal(two.rgb, alone.rgb)


def test_no_face_is_said_in_one_line(antelope, tmp_path):
    path = saved(tmp_path / "photo.png", scene())
    with pytest.raises(ValueError, match=r"photo.png: no face was found; give a photo with the whole head") as error:
        preprocessor(antelope)(read_photo(path))
    assert str(error.value).isprintable()


def test_a_face_hidden_by_transparency_is_not_found(antelope, tmp_path):
    picture = scene((*AT, BLUE))
    alpha = np.where((picture == BACKGROUND).all(2), 0, 255).astype(np.uint8)
    hidden = np.dstack([mark(picture, 2, 2, 255), alpha])
    hidden[64:96, 64:96, 3] = 0
    found = preprocessor(antelope, matte=MatteConfig())(read_photo(saved(tmp_path / "photo.png", hidden)))
    assert found.notes == ()


def test_a_profile_is_taken_with_a_note(tmp_path):
    folder = models(tmp_path / "profile", turn(72))
    one = preprocessor(folder)(read_photo(saved(tmp_path / "photo.png", scene((*AT, BLUE)))))
    assert one.notes == ("the head is turned by 72 degrees; identity and views are surest within 45",)


@pytest.mark.parametrize(
    ("rotation", "size", "blue", "says"),
    [
        (turn(0, 85), 1.0, BLUE, "the head is raised or lowered by 85 degrees; 80 or less works"),
        (turn(0, 0, 60), 1.0, BLUE, "the head is tilted by 60 degrees; 50 or less works"),
        (turn(), 1.6, BLUE, "the head is 1.50 times as large as its eyes and mouth suggest; 0.7 to 1.3 works"),
        (turn(), 0.5, BLUE, "the head is 0.47 times as large as its eyes and mouth suggest"),
        (turn(), 1.0, 60, "the head is only 91 px large; 128 or more works"),
        (turn(), 1.0, 10, "the head is only 17 px large; 128 or more works"),
    ],
)
def test_heads_that_cannot_be_cut(rotation, size, blue, says, tmp_path):
    folder = models(tmp_path / "models", rotation, size)
    with pytest.raises(ValueError, match=rf"photo.png: {says}"):
        preprocessor(folder)(read_photo(saved(tmp_path / "photo.png", scene((*AT, blue)))))


def test_transparency_is_taken_as_it_is(antelope, tmp_path):
    picture = scene((*AT, BLUE))
    alpha = np.where((picture == BACKGROUND).all(2), 0, 255).astype(np.uint8)
    plain = preprocessor(antelope)(read_photo(saved(tmp_path / "plain.png", picture)))
    picture[alpha == 0] = (0, 255, 0)
    clear = preprocessor(antelope, matte=MatteConfig())(
        read_photo(saved(tmp_path / "clear.png", np.dstack([picture, alpha])))
    )
    check(clear)
    assert (clear.alpha - plain.alpha).abs().mean() < 0.01
    assert (clear.rgb - plain.rgb).abs().mean() < 0.02
    assert not ((clear.rgb[1] > 0.5) & (clear.rgb[0] < 0)).any(), "no green shines through"


def test_the_parser_s_file_is_asked(antelope, tmp_path):
    torch.manual_seed(0)
    parser = BiSeNet()
    torch.nn.init.constant_(parser.conv_out.conv_out.weight[0], -10.0)
    save_file(parser.state_dict(), tmp_path / "parser.safetensors")
    make = preprocessor(antelope, matte=MatteConfig(parser=str(tmp_path / "parser.safetensors")))
    one = make(read_photo(saved(tmp_path / "photo.png", scene((*AT, BLUE)))))
    check(one)
    assert (one.alpha == 1).all(), "a parser that sees no background leaves all of it"


def test_an_unknidentity_background_is_refused(antelope, tmp_path):
    path = saved(tmp_path / "photo.png", scene((*AT, BLUE)))
    with pytest.raises(ValueError, match=r"photo.png: it has no transparency .*--matte.parser .*79999_iter.pth"):
        preprocessor(antelope, matte=MatteConfig())(read_photo(path))
    noise = np.random.default_rng(0).integers(0, 120, (640, 640, 3), np.uint8)
    with pytest.raises(ValueError, match=r"noise.png: its background is not of one colour"):
        preprocessor(antelope)(read_photo(saved(tmp_path / "noise.png", mark(noise, *AT))))


def test_without_the_recogniser_there_is_a_reason(antelope, tmp_path):
    folder = Path(shutil.copytree(antelope, tmp_path / "models"))
    (folder / "arcface.onnx").rename(folder / "glintr100.onnx")
    path = saved(tmp_path / "photo.png", scene((*AT, BLUE)))
    one = preprocessor(folder)(read_photo(path))
    check(one)
    assert one.without_identity.endswith(
        "has no arcface.onnx, the recogniser of Arc2Face (glintr100.onnx is another recogniser)"
    )
    other = preprocessor(folder, face=FaceConfig(str(folder), arcface=str(antelope / "arcface.onnx")))(read_photo(path))
    check(other)
    assert other.identity is not None


def test_missing_and_wrong_models_say_which_file_to_place(antelope, tmp_path):
    with pytest.raises(ValueError, match=r"a photo needs a face detector: --face.models names the folder of scrfd_10g"):
        load_preprocessor(PortraitConfig())
    with pytest.raises(
        FileNotFoundError, match=r"face.models: there is no folder .*none; give the folder of your antelopev2"
    ):
        load_face_models(FaceConfig(str(tmp_path / "none")))
    folder = Path(shutil.copytree(antelope, tmp_path / "models"))
    (folder / "scrfd_10g_bnkps.onnx").rename(tmp_path / "kept.onnx")
    with pytest.raises(FileNotFoundError, match=r"face.models: .* has no scrfd_10g_bnkps.onnx; place it there"):
        load_face_models(FaceConfig(str(folder)))
    for name in ("scrfd_10g_bnkps.onnx", "det_10g.onnx"):
        shutil.copy(tmp_path / "kept.onnx", folder / name)
    with pytest.raises(ValueError, match=r"has scrfd_10g_bnkps.onnx|has det_10g.onnx, scrfd_10g_bnkps.onnx; leave one"):
        load_face_models(FaceConfig(str(folder)))
    (folder / "scrfd_10g_bnkps.onnx").unlink()
    assert load_face_models(FaceConfig(str(folder))).detector is not None, "buffalo_l's name"
    (folder / "1k3d68.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no 1k3d68.onnx; place it there"):
        load_face_models(FaceConfig(str(folder)))
    shutil.copy(antelope / "arcface.onnx", folder / "1k3d68.onnx")
    with pytest.raises(ValueError, match=r"1k3d68.onnx writes .*; the 3D landmark model 1k3d68 writes \[batch, 3309\]"):
        load_face_models(FaceConfig(str(folder)))
    small = write_recogniser(tmp_path / "small.onnx", dimensions=32)
    with pytest.raises(ValueError, match=r"small.onnx writes 32 numbers; an identity has 512"):
        load_face_models(FaceConfig(arcface=str(small)))
    with pytest.raises(FileNotFoundError, match=r"face.arcface: there is no file .*gone.onnx"):
        load_face_models(FaceConfig(arcface=str(tmp_path / "gone.onnx")))


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> dict[str, Path]:
    """Two views of one procedural head and one of another, with alpha."""
    folder, cameras = tmp_path_factory.mktemp("heads"), orbit(np.array([0.0, 20.0]), np.zeros(2))
    found = {}
    for name, seed, views in (("one", 3, [0, 1]), ("other", 4, [0])):
        seen = ProceduralSource().head(seed).render(cameras[views], 160)
        for i, view in enumerate(views):
            pixels = torch.cat([seen.rgb[i], seen.alpha[i].reshape(160, 160, 1)], -1)
            found[f"{name}{view}"] = saved(folder / f"{name}{view}.png", (pixels * 255).round().byte().numpy())
    return found


def test_aligned_pictures_need_no_detector(heads):
    """Procedural heads with the embedded recogniser: a person is nearer to themself than to another."""
    face = FaceConfig(arcface=str(EMBEDDED / "arcface.onnx"))
    front, turned = (load_preprocessor(PortraitConfig(aligned=True, azimuth=a, face=face)) for a in (0.0, 20.0))
    one, same, other = (s(read_photo(heads[k])) for s, k in ((front, "one0"), (turned, "one1"), (front, "other0")))
    for portrait in (one, same, other):
        check(portrait)
        assert portrait.notes == ("160 px were enlarged to 512",)
        assert portrait.identity is not None
    torch.testing.assert_close(same.c2w, orbit(np.array([20.0]), np.zeros(1)).c2w[0])
    assert float(one.identity @ same.identity) > float(one.identity @ other.identity) + 0.3


def test_aligned_pictures_ask_a_detector_that_is_given(antelope, tmp_path):
    make = preprocessor(antelope, aligned=True)
    blank = make(read_photo(saved(tmp_path / "blank.png", scene())))
    check(blank)
    assert blank.without_identity == "the detector sees no face in it"
    marked = np.asarray(Image.fromarray(scene()).resize((512, 512)))
    check(make(read_photo(saved(tmp_path / "marked.png", mark(marked.copy(), 7, 7)))))


def test_aligned_pictures_that_are_not(heads, tmp_path):
    with pytest.raises(ValueError, match=r"wide.png: it is 640 x 300 px; an aligned picture is square"):
        load_preprocessor(PortraitConfig(aligned=True))(read_photo(saved(tmp_path / "wide.png", scene()[:300])))
    away = load_preprocessor(PortraitConfig(aligned=True, azimuth=150.0))(read_photo(heads["one0"]))
    assert away.identity is None and away.without_identity == "the head is turned away by 150 degrees"
    plain = load_preprocessor(PortraitConfig(aligned=True))(read_photo(heads["one0"]))
    assert plain.without_identity == "no recogniser was given; --face.arcface names Arc2Face's arcface.onnx"
    blank = saved(tmp_path / "blank.png", np.full((512, 512, 3), 255, np.uint8))
    make = load_preprocessor(PortraitConfig(aligned=True, matte=MatteConfig(uniform=True)))
    with pytest.raises(ValueError, match=r"blank.png: only 0.0% of it is left"):
        make(read_photo(blank))


def test_bad_settings():
    with pytest.raises(ValueError, match=r"--elevation is 90\.0; it must be from -89\.9 to 89\.9"):
        PortraitConfig(aligned=True, elevation=90.0)
    with pytest.raises(ValueError, match=r"--azimuth and --elevation are those of an aligned picture"):
        PortraitConfig(azimuth=30.0)


def test_what_does_not_read_is_said_as_reading_says_it(antelope, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file"):
        preprocessor(antelope)(read_photo(tmp_path / "none.jpg"))
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty.jpg is empty"):
        preprocessor(antelope)(read_photo(tmp_path / "empty.jpg"))
