"""Strokes: how they come in, what they say about other voxels, the losses that see them, and two branches that learn."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from bench.robot import annotate_until
from datastore.labels import as_viewers_draw, read_label, voxels_of, with_strokes
from datastore.volume_io import Header, read_volume, write_volume
from infers.engine import Segmenter
from loop.config import AppConfig
from loop.errors import BadInput
from models import ModelSpec
from models.heads import of_heads
from models.plans import Plans
from models.preprocess import IGNORED
from models.second_decoder import SecondDecoder, encoder_modules
from trainers.engine import Case, Settings, train
from trainers.losses import inverse_frequencies, logits_of, partial_ce
from trainers.objectives import LOSSES, dual_branch_loss, loss_named
from trainers.scribbles import with_outside

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def random_case(shape: tuple[int, ...], n_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, C, *S) and a target (2, *S) of which two fifths are IGNORED."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, n_classes, *shape, generator=generator)
    target = torch.randint(n_classes, (2, *shape), generator=generator)
    return logits, torch.where(torch.rand(target.shape, generator=generator) < 0.4, IGNORED, target).to(torch.uint8)


def softmax(logits: Tensor) -> np.ndarray:
    """(B, C, *S), in double precision."""
    z = logits.detach().double().numpy()
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def rows(maps: np.ndarray) -> np.ndarray:
    """(B, C, *S) -> (voxels, C)."""
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


def plain_ce(logits: Tensor, target: Tensor, weights: np.ndarray | None = None) -> float:
    probs, classes = rows(softmax(logits)), target.numpy().ravel()
    probs, classes = probs[classes != IGNORED], classes[classes != IGNORED]
    each = -np.log(probs[np.arange(len(classes)), classes])
    own = np.ones(len(classes)) if weights is None else weights[classes]
    return float((own * each).sum() / own.sum())


def plain_dice_loss(logits: Tensor, classes: np.ndarray) -> float:
    probs, classes = rows(softmax(logits)), classes.ravel()
    scores = [
        2 * probs[classes == k, k].sum() / (probs[:, k].sum() + (classes == k).sum())
        for k in range(1, probs.shape[1])
        if (classes == k).any()
    ]
    return 1 - float(np.mean(scores)) if scores else 0.0


# --- losses

shapes = pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)], ids=["2d", "3d"])


@shapes
def test_partial_cross_entropy_is_that_of_the_annotated_voxels(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape, 4)
    assert partial_ce(logits, target).item() == pytest.approx(plain_ce(logits, target), rel=1e-5)


@shapes
def test_weighted_cross_entropy_has_inverse_frequencies_of_annotated_voxels(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape, 4)
    target[target == 2] = IGNORED
    annotated = target.numpy()[target.numpy() != IGNORED]
    counts = np.bincount(annotated, minlength=4)
    weights = np.array([1 / n if n else 0.0 for n in counts])
    weights *= 3 / weights.sum()
    np.testing.assert_allclose(inverse_frequencies(torch.from_numpy(counts)), weights, rtol=1e-6)
    # Several targets are counted together, whatever their shapes.
    loss = loss_named("weighted_ce", [target[:1], target[1:, :2], target[1:, 2:]], 4)
    assert loss(logits, target).item() == pytest.approx(plain_ce(logits, target, weights), rel=1e-5)


@shapes
@pytest.mark.parametrize("name", LOSSES)
def test_what_nobody_annotated_changes_no_loss_and_has_no_gradient(name: str, shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape, 3)
    loss = loss_named(name, [target], 3)
    hidden = (target == IGNORED)[:, None].expand_as(logits)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[hidden].any()
    assert logits.grad[~hidden].all()
    assert loss(torch.where(hidden, 100 * torch.randn_like(logits), logits), target).item() == value.item()
    nothing = torch.full_like(target, IGNORED)
    assert loss(logits, nothing).item() == 0


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(BadInput, match="one of dice_ce, ce, weighted_ce, got 'focal'"):
        loss_named("focal", [], 3)


@shapes
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_of_two_branches_is_that_of_the_paper(shape: tuple[int, ...], alpha: float) -> None:
    (first, target), (second, _) = random_case(shape, 4), random_case(shape, 4, seed=1)
    pseudo = (alpha * softmax(first) + (1 - alpha) * softmax(second)).argmax(1)
    strokes = (plain_ce(first, target) + plain_ce(second, target)) / 2
    taught = (plain_dice_loss(first, pseudo) + plain_dice_loss(second, pseudo)) / 2
    found = dual_branch_loss(first, second, target, alpha)
    assert found.item() == pytest.approx(strokes + 0.5 * taught, rel=1e-5)
    moved = torch.where(target == IGNORED, IGNORED, target)
    assert dual_branch_loss(first, second, moved, alpha, partial_ce).item() == found.item()


def test_the_pseudo_label_teaches_both_branches_where_nobody_drew() -> None:
    (first, target), (second, _) = random_case((6, 6), 3), random_case((6, 6), 3, seed=1)
    first.requires_grad_(), second.requires_grad_()
    dual_branch_loss(first, second, target, 0.4).backward()
    for logits in (first, second):
        assert logits.grad is not None
        assert logits.grad[(target == IGNORED)[:, None].expand_as(logits)].any()


# --- what strokes enclose


def drawn() -> np.ndarray:
    """(20, 24, 3): a ring of background around a class on slice 0, not around it on slice 1, nothing on slice 2."""
    classes = np.full((20, 24, 3), IGNORED, np.uint8)
    classes[5, 5:15, :2] = classes[12, 5:15, :2] = classes[5:13, 5, :2] = classes[5:13, 14, :2] = 0
    classes[8, 8:11, 0] = 2
    classes[8, 8:20, 1] = 2
    return classes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_outside_an_enclosing_stroke_some_voxels_are_background(axis: int) -> None:
    before = np.moveaxis(drawn(), 2, axis)
    copy = before.copy()
    found = np.moveaxis(with_outside(before, axis), axis, 2)
    np.testing.assert_array_equal(before, copy)
    changed = found != drawn()
    assert not changed[..., 1:].any()
    assert not changed[5:13, 5:15].any()
    assert (found[changed] == 0).all()
    assert changed.sum() == (drawn()[..., 0] == 0).sum()
    np.testing.assert_array_equal(with_outside(before, axis), np.moveaxis(found, 2, axis))


# --- the second decoder


PLANS = Plans.read(Path(__file__).parent / "plans_2d.json")


def spec_of(name: str, **changes: Any) -> ModelSpec:
    return replace(models.get(name, labels=("box", "hole"), plans=PLANS), **changes)


def input_of(spec: ModelSpec, n: int) -> Tensor:
    size = (n, 1, *(2 * divisor for divisor in spec.divisors))
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.names())
def test_the_second_decoder_shares_the_encoder_and_nothing_else(name: str) -> None:
    spec = spec_of(name)
    network = spec.network(0).train()
    second = SecondDecoder(spec, network, seed=1)
    data = input_of(spec, 2)
    main = logits_of(network(data))
    outputs = second(data)
    assert logits_of(outputs).shape == main.shape
    sum(output.sum() for output in (outputs if isinstance(outputs, list) else [outputs])).backward()
    encoder = encoder_modules(spec, spec.network(0))
    assert spec.feature_layer in encoder
    for key, parameter in network.named_parameters():
        shared = any(key.startswith(f"{part}.") for part in encoder)
        assert (parameter.grad is not None) == shared, key
    assert all(parameter.grad is not None for parameter in second.parameters())
    kept = {key.split(".")[2] for key in second.named_weights()}
    assert kept
    assert not kept & {part.split(".")[0] for part in encoder}


@pytest.mark.parametrize("name", models.names())
def test_with_the_same_weights_and_no_dropout_both_decoders_agree(name: str) -> None:
    spec = spec_of(name)
    network = spec.network(0).eval()
    second = SecondDecoder(spec, network, seed=1).eval()
    data = input_of(spec, 1)
    main = network(data)
    assert not torch.allclose(second(data), main, atol=1e-3)
    second.take(network.state_dict())
    network(data)
    torch.testing.assert_close(second(data), main)
    second.close()


class Twice(nn.Module):
    """A network without a bottleneck of its own: one module does everything, twice."""

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Conv2d(1, channels_out, 1)

    def forward(self, data: Tensor) -> Tensor:
        found: Tensor = self.head(self.mix(self.mix(data)))
        return found


@pytest.mark.parametrize(
    ("layer", "message"), [("mix", "its part 'mix' runs more than once"), ("deep", "names its bottleneck")]
)
def test_a_network_that_cannot_be_split_is_refused(layer: str, message: str) -> None:
    spec = spec_of("unet2d", build=Twice, feature_layer=layer)
    with pytest.raises(BadInput, match=f"{message}.*partial_ce"):
        SecondDecoder(spec, spec.network(0), 1)


# --- the door

IMAGE = Header((4, 5, 6), np.diag([1.5, 1.5, 8, 1]))
VALUES = {"liver": 1, "spleen": 2}
U = 3
"""Unlabelled."""


def saved(folder: Path, *values: int) -> Path:
    """A label whose first voxels are `values`, the others 0."""
    mask = np.zeros(IMAGE.shape, np.uint8)
    mask.flat[: len(values)] = values
    write_volume(folder / "label.nii.gz", mask, IMAGE.affine)
    return folder / "label.nii.gz"


def named(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "idx": position} for position, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("info", "sent", "expected", "rest"),
    [
        ([], [1, 2, 3, 0], [1, 2, U, 0], 0),
        ([], [1, 2, 1], [1, 2, 1], 0),
        (named("spleen", "liver"), [1, 2, 3, 0], [2, 1, U, 0], 0),
        (named("spleen", "liver", "unlabelled"), [1, 2, 3, 0], [2, 1, U, 0], 0),
        (named("liver", "spleen", "background_strokes"), [1, 2, 3, 0], [1, 2, 0, U], U),
        (named("liver", "background"), [1, 2, 0], [1, 0, U], U),
        (named("background_scribbles", "spleen"), [1, 2, 0], [0, 2, U], U),
        (named("liver", "spleen", "background_strokes"), [1, 0], [1, U], U),
    ],
    ids=["plain", "full", "their order", "unlabelled by name", "viewer", "background", "scribbles", "no ground"],
)
def test_both_forms_of_scribbles_are_read(
    tmp_path: Path, info: list[dict[str, Any]], sent: list[int], expected: list[int], rest: int
) -> None:
    mask = read_label(saved(tmp_path, *sent), IMAGE, VALUES, info, U)
    assert mask.flat[: len(sent)].tolist() == expected
    assert (mask.flat[len(sent) :] == rest).all()


def test_foreground_scribbles_are_taken_where_there_is_one_class(tmp_path: Path) -> None:
    info = named("background_scribbles", "foreground_scribbles")
    mask = read_label(saved(tmp_path, 1, 2, 0), IMAGE, {"liver": 1}, info, 2)
    assert mask.flat[:3].tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match=r"foreground_scribbles.*Draw each class in its own segment"):
        read_label(saved(tmp_path, 1, 2, 0), IMAGE, VALUES, info, U)


@pytest.mark.parametrize(
    ("unlabeled", "sent", "message"),
    [
        (
            None,
            [1, 3],
            "0 (background) and 1 liver, 2 spleen, got the value 3. Scribbles are taken with --conf supervision",
        ),
        (U, [1, 4], "0 (background), 1 liver, 2 spleen and 3 unlabelled, got the value 4."),
        (9, [1, 3], "and 9 unlabelled, got the value 3."),
    ],
)
def test_other_values_are_refused(tmp_path: Path, unlabeled: int | None, sent: list[int], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read_label(saved(tmp_path, *sent), IMAGE, VALUES, (), unlabeled)


def test_unlabelled_voxels_are_not_counted_and_viewers_see_nothing_there() -> None:
    mask = np.array([[[0, U], [1, U]], [[2, U], [U, U]]], np.uint8)
    assert voxels_of(mask, 2, [0, 1], 3) == [[1, 1, 1], [0, 0, 0]]
    assert with_strokes(mask, 2, U) == [0]
    assert with_strokes(mask, 0, U) == [0, 1]
    shown = as_viewers_draw(mask, U)
    np.testing.assert_array_equal(shown, [[[U, 0], [1, 0]], [[2, 0], [0, 0]]])
    np.testing.assert_array_equal(as_viewers_draw(shown, U), mask)


def test_settings_of_scribbles() -> None:
    three = AppConfig(supervision="scribble")
    assert (AppConfig().unlabeled(), three.unlabeled(), replace(three, unlabeled_value=9).unlabeled()) == (None, 4, 9)
    assert AppConfig().viewer_values() == AppConfig().label_values()
    assert list(three.viewer_values().items())[-1] == ("background_strokes", 4)
    with pytest.raises(BadInput, match="unlabeled_value must be above the labels' values 1 to 3, got 2"):
        AppConfig(unlabeled_value=2).check()


# --- the whole


def strokes_of(mask: np.ndarray, unlabeled: int) -> np.ndarray:
    """Of each slice, every fourth row of the mask's box and a ring around it; a slice of background gets one line."""
    strokes = np.full(mask.shape, unlabeled, np.uint8)
    for k in range(mask.shape[2]):
        there = np.argwhere(mask[..., k])
        if not len(there):
            strokes[2, :, k] = 0
            continue
        (a, b), (c, d) = there.min(0), there.max(0)
        strokes[a : c + 1 : 4, b : d + 1, k] = mask[a : c + 1 : 4, b : d + 1, k]
        a, b, c, d = max(a - 2, 0), max(b - 2, 0), min(c + 2, mask.shape[0] - 1), min(d + 2, mask.shape[1] - 1)
        for edge in (np.s_[a, b : d + 1], np.s_[c, b : d + 1], np.s_[a : c + 1, b], np.s_[a : c + 1, d]):
            strokes[(*edge, k)] = mask[(*edge, k)]
    return strokes


MARK = 5
"""Unlabelled, of the phantoms' four classes."""


@pytest.fixture
def folder(demo: Path) -> Path:
    """Phantoms with scribbles/ beside labels/."""
    for file in sorted((demo / "labels").iterdir()):
        truth = read_volume(file)
        (demo / "scribbles").mkdir(exist_ok=True)
        write_volume(demo / "scribbles" / file.name, strokes_of(truth.array.astype(np.uint8), MARK), truth.affine)
    return demo


def put(http: Any, image: str, file: Path, **params: Any) -> Any:
    with open(file, "rb") as data:
        return http.put(
            "/datastore/label", params={"image": image}, data={"params": json.dumps(params)}, files={"label": (file.name, data)}
        )  # fmt: skip


def composite(server: Any, tag: str, image: str) -> np.ndarray:
    with server.client() as http:
        answer = http.get("/datastore/label", params={"label": image, "tag": tag})
        answer.raise_for_status()
    file = server.root / f"{tag}.nii.gz"
    file.write_bytes(answer.content)
    return read_volume(file).array


def test_a_campaign_with_scribbles(folder: Path, serve: Any) -> None:
    """The robot paints strokes; a training follows; the composites keep what is unlabelled, in the form of each reader."""
    server = serve(folder, supervision="scribble", budget="4", validation_share="0", strategy="random")
    said: list[str] = []
    annotate_until(server.url, folder / "scribbles", "", 4, "robot", 1, 100, said.append, exam=folder / "labels")
    assert any("mean Dice" in line for line in said)
    with server.client() as http:
        card = http.get("/al/progress").json()["model"]
        assert (card["settings"]["loss"], card["settings"]["dual_branch"]) == ("dice_ce", True)
        objects = http.get("/datastore/", params={"output": "all"}).json()["objects"]
        image = next(name for name in sorted(objects) if objects[name]["labels"])
        done = http.get(f"/al/items/{image}").json()
        names = {tag: entry["info"]["params"]["label_names"] for tag, entry in objects[image]["labels"].items()}
        assert list(names["original"].items())[-1] == ("background_strokes", MARK)
        assert list(names["final"].items())[-1] == ("unlabelled", MARK)
    strokes = read_volume(folder / "scribbles" / f"{image}.nii.gz").array
    final, original = (composite(server, tag, image) for tag in ("final", "original"))
    annotated = [k for k in range(final.shape[2]) if (final[..., k] != MARK).any()]
    assert annotated
    assert annotated == [k for k, facts in enumerate(done["slices"]) if facts["state"] == "labeled"]
    for k in range(final.shape[2]):
        np.testing.assert_array_equal(final[..., k], strokes[..., k] if k in annotated else MARK)
    np.testing.assert_array_equal(as_viewers_draw(final, MARK), original)
    # A viewer opens `original`, draws one stroke of background more, and sends it back.
    another = next(k for k in range(final.shape[2]) if k not in annotated)
    original[3, 3:9, another] = MARK
    write_volume(server.root / "back.nii.gz", original, read_volume(folder / "images" / f"{image}.nii.gz").affine)
    info = [{"name": name, "idx": value} for name, value in names["original"].items()]
    with server.client() as http:
        answer = put(http, image, server.root / "back.nii.gz", client_id="slicer", label_info=info)
        assert answer.json()["slices"] == sorted([*annotated, another])
        empty = np.zeros_like(original)
        write_volume(server.root / "back.nii.gz", empty, read_volume(folder / "images" / f"{image}.nii.gz").affine)
        refused = put(http, image, server.root / "back.nii.gz", client_id="slicer", label_info=info)
        assert (refused.status_code, "no stroke" in refused.text) == (400, True)
    final[3, 3:9, another] = 0
    np.testing.assert_array_equal(composite(server, "final", image), final)


def test_without_the_setting_scribbles_are_refused(folder: Path, serve: Any) -> None:
    server = serve(folder)
    file = min((folder / "scribbles").iterdir())
    with server.client() as http:
        answer = put(http, file.name.removesuffix(".nii.gz"), file)
    assert answer.status_code == 400
    assert "got the value 5. Scribbles are taken with --conf supervision scribble." in answer.text


# --- training


SETTINGS = Settings(epochs=1, steps_per_epoch=3, batch_size=2, learning_rate=3e-3, seed=1, loss="ce", dual_branch=True)


def scribbled(folder: Path, name: str = "one", split: str = "training") -> Case:
    """A bright box and a dark one on noise; a stroke in each, a ring of background around both, on every slice."""
    shape = (24, 32, 5)
    mask = np.zeros(shape, np.uint8)
    mask[6:12, 8:16], mask[13:19, 16:24] = 1, 2
    image = np.random.default_rng(len(name)).normal(0, 0.3, shape) + np.choose(mask, [0, 2, -2])
    strokes = np.full(shape, 3, np.uint8)
    strokes[4, 4:28] = strokes[20, 4:28] = strokes[4:21, 4] = strokes[4:21, 27] = 0
    strokes[13:20, 10], strokes[5:12, 21] = 0, 0
    strokes[8:10, 9:15], strokes[15:17, 17:23] = 1, 2
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "strokes")]
    for path, array in zip(paths, (image.astype(np.float32), strokes), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Case(name, paths[0], paths[1], 2, range(shape[2]), split, unlabeled=3)


@pytest.mark.parametrize("name", models.names())
def test_a_training_with_two_branches_is_seeded_and_predicts_as_any(tmp_path: Path, name: str) -> None:
    spec, case = spec_of(name), scribbled(tmp_path)
    first, again = (train(spec, [case], SETTINGS, device=CPU) for _ in range(2))
    other = train(spec, [case], replace(SETTINGS, dual_branch=False), device=CPU)
    assert all(torch.equal(first.weights[key], again.weights[key]) for key in first.weights)
    second = {key for key in first.weights if key.startswith("heads.second_decoder.")}
    assert second == first.weights.keys() - other.weights.keys()
    assert not of_heads(first.weights)
    mask = Segmenter(spec, first.weights, device=CPU).predict(read_volume(case.image), case.axis)
    assert mask.shape == (24, 32, 5)


def test_training_goes_on_with_both_decoders(tmp_path: Path) -> None:
    spec, case = spec_of("unet2d"), scribbled(tmp_path)
    start = train(spec, [case], SETTINGS, device=CPU).weights
    gently = replace(SETTINGS, learning_rate=1e-9)
    after = train(spec, [case], gently, device=CPU, start=start).weights
    trained = [key for key, _ in spec.network(0).named_parameters()]
    keys = [*trained, *(key for key in start if key.startswith("heads.") and "running" not in key)]
    assert max(float((after[key] - start[key]).abs().max()) for key in keys if "num_batches" not in key) < 1e-6
    # Weights of a training with masks will do too.
    plain = train(spec, [case], replace(SETTINGS, dual_branch=False), device=CPU).weights
    train(spec, [case], gently, device=CPU, start=plain)


def test_voxels_without_a_stroke_are_not_seen(tmp_path: Path) -> None:
    spec, case = spec_of("unet2d"), scribbled(tmp_path)
    alone = replace(SETTINGS, dual_branch=False)
    before = train(spec, [case], alone, device=CPU)
    mask = nib.load(case.mask)
    strokes = np.asanyarray(mask.dataobj).copy()
    # Another number for the same thing.
    nib.save(nib.Nifti1Image(np.where(strokes == 3, 9, strokes).astype(np.uint8), mask.affine), case.mask)
    after = train(spec, [replace(case, unlabeled=9)], alone, device=CPU)
    assert all(torch.equal(before.weights[key], after.weights[key]) for key in before.weights)
    with pytest.raises(BadInput, match="no usable annotated slice"):
        train(spec, [case], alone, device=CPU)


@pytest.mark.parametrize("dual_branch", [False, True])
def test_strokes_are_learned(tmp_path: Path, dual_branch: bool) -> None:
    spec, case = spec_of("unet2d"), scribbled(tmp_path)
    settings = replace(SETTINGS, steps_per_epoch=60, learning_rate=1e-2, loss="dice_ce", dual_branch=dual_branch)
    trained = train(spec, [replace(case, outside=True)], settings, device=CPU)
    found = Segmenter(spec, trained.weights, device=CPU).predict(read_volume(case.image), case.axis)
    strokes = read_volume(case.mask).array
    assert (found == strokes)[strokes != 3].mean() > 0.95


def test_validation_looks_at_strokes_only(tmp_path: Path) -> None:
    spec = spec_of("unet2d")
    cases = [scribbled(tmp_path), scribbled(tmp_path, "other", "validation")]
    trained = train(spec, cases, SETTINGS, device=CPU)
    found = Segmenter(spec, trained.weights, device=CPU).predict(read_volume(cases[1].image), 2)
    strokes = read_volume(cases[1].mask).array
    found = np.where(strokes == 3, 3, found)
    for k, name in ((1, "box"), (2, "hole")):
        dice = 2 * ((found == k) & (strokes == k)).sum() / ((found == k).sum() + (strokes == k).sum())
        assert trained.metrics["dice_per_class"][name] == pytest.approx(dice, abs=1e-6)
