"""Augmentation: an instance is changed alike wherever and whenever it is met, evaluation never, teachers as agreed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from mstdistill import losses
from mstdistill.config import Recipe, load
from mstdistill.data.augment import pictures, sounds
from mstdistill.data.augment.draws import Draws
from mstdistill.data.augment.fits import NEEDS
from mstdistill.data.augment.plan import Augmentation
from mstdistill.data.feeding.batch import Batch, Partner
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.feeding.pairs import Pairs
from mstdistill.data.feeding.resident import ResidentSplit
from mstdistill.data.feeding.varying import Varying
from mstdistill.data.labelled import PartlyLabelled
from mstdistill.data.sources.registry import find_task
from mstdistill.data.task import Form
from mstdistill.engine import loop
from mstdistill.engine.graph import StepGraph
from mstdistill.errors import ConfigError
from mstdistill.methods import BASELINES
from mstdistill.sections.augment import AugmentSettings, Change
from mstdistill.suite.sharing import shareable
from tests import toy
from tests.conftest import make_split
from tests.test_speed_paths import Again

STAGES = ("cotrain", "specialise", "distill", "alone")
EVERYTHING: dict[str, list[dict[str, float]]] = {
    "image": [{"crop": 2}, {"flip": 0.5}, {"turn": 15}, {"erase": 0.5}, {"noise": 0.1}],
    "audio": [{"mask_frequency": 5}, {"mask_time": 6}, {"shift": 0.2}, {"noise": 0.3}],
    "text": [{"word_dropout": 0.4}],
}
NOISY = {"modalities": {"m1": [{"noise": 0.5}, {"shift": 0.2}], "m2": [{"noise": 0.5}]}}
QUICK = {"cotrain": {"epochs": 1}, "specialise": {"epochs": 1}, "alone": {"enabled": False}, "distill": {"epochs": 3}}
FORMS = {"image": Form("image"), "audio": Form("audio"),
         "text": Form("text", rows=("input_ids", "attention_mask"))}  # fmt: skip


def instances(count: int = 23) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    text = torch.stack([torch.randint(5, 99, (count, 11), generator=g), torch.ones(count, 11, dtype=torch.int64)], 1)
    return {"image": torch.rand(count, 3, 13, 17, generator=g), "audio": torch.rand(count, 1, 20, 31, generator=g),
            "text": text.int()}  # fmt: skip


def augmentation(modalities: Any, samples: dict[str, Tensor], forms: Any = FORMS, dense: bool = False) -> Augmentation:
    return Augmentation(AugmentSettings(modalities=modalities), 5, forms, samples, dense)


def test_an_instance_is_changed_alike_in_any_batch() -> None:
    inputs = instances()
    change, index = augmentation(EVERYTHING, inputs), 1000 + torch.arange(23)
    whole = change(inputs, index, 3)
    for name, x in whole.items():
        assert not torch.equal(x, inputs[name])
        assert len({row.numpy().tobytes() for row in x}) == 23
    for rows in (*([i] for i in range(23)), [22, 3, 9], list(range(7, 20)), list(reversed(range(23)))):
        part = change({name: x[rows] for name, x in inputs.items()}, index[rows], 3)
        for name, x in part.items():
            assert torch.equal(x, whole[name][rows]), (name, rows)
    again = [change(inputs, index, epoch) for epoch in (3, 4)]
    other = augmentation(EVERYTHING, inputs)
    other.seed = 6
    for name, x in whole.items():
        assert torch.equal(again[0][name], x)
        assert not torch.equal(again[1][name], x)
        assert not torch.equal(other(inputs, index, 3)[name], x)


def test_draws_are_as_even_and_normal_as_they_should_be() -> None:
    draws = Draws(1, 2, torch.arange(20_000))
    for u in draws.uniform(3).unbind(1):
        assert 0 <= float(u.min()) <= float(u.max()) < 1
        # 5 standard errors
        assert abs(float(u.mean()) - 0.5) < 5 * 0.2887 / 20_000**0.5
        assert torch.histc(u, 10, 0, 1).sub(2000).abs().max() < 5 * 2000**0.5
    limits = torch.full((20_000,), 7)
    a, b = draws.of("whole").below(7, limits).unbind(1)
    for numbers in (a, b):
        assert torch.bincount(numbers).shape == (7,)
        assert torch.bincount(numbers).sub(20_000 / 7).abs().max() < 5 * (20_000 / 7) ** 0.5
    normal = draws.normal(5, 2.0, torch.float64)
    assert abs(float(normal.mean())) < 5 * 2 / 100_000**0.5
    assert float(normal.std()) == pytest.approx(2.0, rel=0.02)
    correlation = torch.corrcoef(torch.cat([normal, draws.of("beside").uniform(3).double()], dim=1).T) - torch.eye(8)
    assert correlation.abs().max() < 5 / 20_000**0.5
    # SplitMix64's published numbers, from the state 1234567
    from mstdistill.data.augment import draws as module

    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state = 1234567 + module._STEP * torch.arange(1, 4)
    assert [int(x) % 2**64 for x in module.mixed(state)] == wanted


def test_pictures_change_as_torchvision_changes_them() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    x, draws = instances()["image"], Draws(5, 1, torch.arange(23))
    cropped = pictures.crop(x, 2, draws)
    for row, found, (down, right) in zip(x, cropped, draws.below(5, 5).tolist(), strict=True):
        assert torch.equal(found, v2.crop(v2.pad(row, [2, 2, 2, 2]), down, right, 13, 17))
    turned, angles = pictures.turn(x, 30, draws), torch.linspace(-30, 30, 4096)[draws.below(4096)[:, 0]]
    for row, found, angle in zip(x, turned, angles.tolist(), strict=True):
        wanted = v2.rotate(row, angle, interpolation=v2.InterpolationMode.BILINEAR)
        assert torch.allclose(found, wanted, atol=2e-5)
    flips = (draws.uniform(1)[:, 0] < 0.5).tolist()
    assert 5 < sum(flips) < 18
    for row, found, flipped in zip(x, pictures.flip(x, 0.5, draws), flips, strict=True):
        assert torch.equal(found, v2.horizontal_flip(row) if flipped else row)


def test_rectangles_and_bands_are_as_large_as_they_should_be() -> None:
    draws = Draws(5, 1, torch.arange(4000))
    holes = (pictures.erase(torch.ones(4000, 1, 24, 36), 0.5, draws) == 0)[:, 0]
    hit = holes.flatten(1).any(dim=1)
    assert abs(int(hit.sum()) - 2000) < 5 * 1000**0.5
    sizes = holes[hit].flatten(1).sum(dim=1) / (24 * 36)
    assert 0.01 < float(sizes.min()) < 0.04
    assert 0.28 < float(sizes.max()) < 0.36
    tall, wide = holes[hit].any(dim=2).sum(dim=1), holes[hit].any(dim=1).sum(dim=1)
    assert torch.equal(tall * wide, holes[hit].flatten(1).sum(dim=1))  # rectangles, and within the picture
    masked = sounds.mask_frequency(torch.ones(4000, 1, 16, 9), 4, draws)[:, 0]
    widths = (masked == 0).all(dim=2).sum(dim=1)
    assert torch.bincount(widths).sub(800).abs().max() < 5 * 800**0.5
    assert torch.equal((masked == 0).flatten(1).sum(dim=1), widths * 9)
    moved = sounds.shift(torch.arange(1.0, 101).expand(4000, 100), 0.1, draws)
    assert set((moved != 0).sum(dim=1).tolist()) == set(range(90, 101))


def test_words_go_unseen_by_their_mask_and_the_first_stays() -> None:
    inputs = instances()
    found = augmentation({"text": [{"word_dropout": 0.4}]}, inputs)(inputs, torch.arange(23), 0)["text"]
    assert torch.equal(found[:, 0], inputs["text"][:, 0])
    assert bool((found[:, 1, 0] == 1).all())
    assert 0.5 < float(found[:, 1, 1:].float().mean()) < 0.7
    assert bool((inputs["text"][:, 1] == 1).all())  # what was given stays
    embedded = {"text": torch.ones(23, 6, 4)}
    rows = augmentation({"text": [{"word_dropout": 0.4}]}, embedded, {})(embedded, torch.arange(23), 0)["text"]
    assert set(rows.sum(dim=2).unique().tolist()) == {0.0, 4.0}


def test_time_may_lie_elsewhere_and_masks_of_padding_stay() -> None:
    g = torch.Generator().manual_seed(0)
    x, index = torch.rand(9, 20, 31, generator=g), torch.arange(9)
    settings = {"audio": [{"mask_frequency": 5}, {"mask_time": 6}, {"shift": 0.2}]}
    last = augmentation(settings, {"audio": x}, {"audio": Form("audio")})({"audio": x}, index, 0)["audio"]
    turned = {"audio": x.transpose(1, 2)}
    first = augmentation(settings, turned, {"audio": Form("audio", time=-2)})(turned, index, 0)["audio"]
    assert torch.equal(first.transpose(1, 2), last)
    packed = {"audio@ab": torch.stack([torch.rand(9, 50, generator=g), torch.ones(9, 50)], dim=1)}
    form = {"audio@ab": Form("audio", rows=("input_values", "attention_mask"))}
    noisy = augmentation({"audio": [{"noise": 0.1}]}, packed, form)(packed, index, 0)["audio@ab"]
    assert torch.equal(noisy[:, 1], packed["audio@ab"][:, 1])
    assert not torch.equal(noisy[:, 0], packed["audio@ab"][:, 0])


@pytest.mark.parametrize(("modalities", "said"), [
    ({"imag": [{"crop": 2}]}, "no network sees such a modality; did you mean image"),
    ({"audio": [{"crop": 2}]}, "crop is for image, and audio is audio; what fits it: mask_frequency"),
    ({"image": [{"crop": 13}]}, r"crop=13: image is \[3, 13, 17\]; give less than 13"),
    ({"audio": [{"mask_time": 40}]}, r"mask_time=40: audio is \[1, 20, 31\]; give less than 31"),
    ({"text": [{"noise": 1.0}]}, "noise is for image and audio and array, and text is text"),
    ({"flat": [{"flip": 0.5}]}, r"flip takes \[..., height, width\], and flat is \[8\]"),
    ({"flat": [{"word_dropout": 0.5}]}, r"word_dropout takes tokens, or embedded words \[words, width\], and flat is"),
    ({"tokens": [{"noise": 0.5}]}, r"noise takes numbers, and tokens is whole numbers \[9\]"),
])  # fmt: skip
def test_what_doesnt_fit_is_refused(modalities: Any, said: str) -> None:
    samples = {**instances(2), "flat": torch.rand(2, 8), "tokens": torch.zeros(2, 9, dtype=torch.int32)}
    with pytest.raises(ConfigError, match=said) as error:
        augmentation(modalities, samples)
    assert "\n" not in str(error.value)


def test_moves_of_pixels_are_refused_where_labels_are_maps() -> None:
    with pytest.raises(ConfigError, match="flip moves pixels, and the labels are maps"):
        augmentation({"image": [{"flip": 0.5}]}, instances(2), dense=True)
    augmentation({"image": [{"erase": 0.5}, {"noise": 0.1}]}, instances(2), dense=True)


@pytest.mark.parametrize(("value", "said"), [
    ("{image: [{crop: 2, flip: 0.5}]}", "an entry is one change"),
    ("{image: [{}]}", "this one has none"),
    ("{image: [{flip: 1.5}]}", "image.0.flip=1.5"),
    ("{image: [{crop: -1}]}", "image.0.crop=-1"),
    ("{image: [{cropp: 1}]}", "did you mean crop"),
    ("[crop]", "augment.modalities"),
])  # fmt: skip
def test_mistakes_in_a_recipe_are_one_line(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load("av-digits", [f"augment.modalities={value}"])
    assert "\n" not in str(error.value)


def test_recipes_without_it_are_bound_as_before() -> None:
    plain = load("av-digits")
    assert "augment" not in plain.binding()
    changed = load("av-digits", ["augment.modalities={image: [{crop: 1}]}"])
    assert changed.binding()["augment"]["modalities"] == {"image": [{"crop": 1}]}
    assert Recipe.model_validate(changed.model_dump()) == changed


def test_the_page_names_every_change_and_its_recipe_is_one() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "augmentation.md").read_text()
    assert (docs / "results" / "augmentation-cpu.md").read_text().strip() in page
    table = page.split("| change | for |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(Change.later) == list(NEEDS)
    content = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    ((recipe, *words),) = [shlex.split(line)[2:] for line in page.split("```bash\n")[1].split("```")[0].splitlines()]
    for augment in (load(recipe, words).augment, AugmentSettings.model_validate(content["augment"])):
        settings = [f"augment.modalities={json.dumps(augment.model_dump()['modalities'])}"]
        assert load(recipe, settings).augment.modalities == augment.modalities
        task = find_task(recipe)
        samples = {name: torch.zeros(2, *[int(n or 1) for n in shape]) for name, shape in task.modalities.items()}
        Augmentation(augment, 0, task.forms, samples, False)


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / stage / "result.safetensors")


def test_training_is_augmented_evaluation_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage learns from changed views, and what is evaluated is the data as they are."""
    changed: list[tuple[int, ...]] = []
    make = Augmentation.__call__

    def counted(self: Augmentation, inputs: Any, index: Tensor, epoch: int, views: Any = None) -> Any:
        changed.append((len(index), epoch))
        return make(self, inputs, index, epoch, views)

    monkeypatch.setattr(Augmentation, "__call__", counted)
    toy.run(tmp_path / "plain")
    assert not changed
    toy.run(tmp_path / "noisy", augment=NOISY)
    # 80 training instances in batches of 16: each step of each stage, and nothing beside
    assert changed == [(16, epoch) for epochs in (2, 2, 4, 6) for epoch in range(epochs) for _ in range(5)]
    for stage in STAGES:
        plain, noisy = weights(tmp_path / "plain", stage), weights(tmp_path / "noisy", stage)
        assert any(not torch.equal(plain[name], noisy[name]) for name in plain), stage


def test_logits_of_teachers_that_dont_see_the_target_stay_exact(tmp_path: Path) -> None:
    """Live teachers and cached ones train the same student, and see no change of any modality."""
    settings = {"augment": NOISY, "cotrain": {"epochs": 1}, "specialise": {"epochs": 1}, "alone": {"enabled": False}}
    for mode in ("always", "never"):
        toy.run(tmp_path / mode, distill={"cache": {"mode": mode}}, **settings)
    cached, live = (weights(tmp_path / mode, "distill") for mode in ("always", "never"))
    for name in cached:
        assert torch.allclose(cached[name], live[name], atol=1e-5), name


@pytest.mark.parametrize("method", ["kd", "fitnets", "c2kd", "mgdfr"])
def test_methods_of_the_comparison_learn_from_changed_views(method: str, tmp_path: Path) -> None:
    for name, augment in (("plain", {}), ("noisy", NOISY)):
        toy.run(tmp_path / name, method=method, augment=augment, alone={"enabled": False}, distill={"epochs": 1},
                baseline={"teacher_epochs": 1})  # fmt: skip
    plain, noisy = (weights(tmp_path / name, "distill") for name in ("plain", "noisy"))
    assert any(not torch.equal(plain[name], noisy[name]) for name in plain)
    assert all(np.isfinite(noisy[name].numpy()).all() for name in noisy)


def test_a_partner_is_of_the_same_kind_and_the_same_in_any_batch() -> None:
    split = make_split(60, seed=1)
    known = np.random.default_rng(0).random(60) < 0.3
    pairs = Pairs(0.4, 7)
    loaders = [Loader(PartlyLabelled(split, known), ["m1"], size, shuffle=True, num_classes=3, pairs=pairs, seed=seed)
               for size, seed in ((60, 0), (7, 1))]  # fmt: skip
    whole = next(loaders[0].epoch(2)).partner
    assert whole is not None
    index = next(loaders[0].epoch(2)).index
    found = dict(zip(index.tolist(), zip(whole.index.tolist(), whole.own.tolist(), strict=True), strict=True))
    assert any(partner != one for one, (partner, _) in found.items())
    for batch in loaders[1].epoch(2):
        assert batch.partner is not None
        for row, one in enumerate(batch.index.tolist()):
            assert found[one] == (int(batch.partner.index[row]), float(batch.partner.own[row]))
            assert torch.equal(batch.partner.inputs["m1"][row], split.inputs["m1"][batch.partner.index[row]])
            assert (batch.partner.label[row] != -1) == (batch.label[row] != -1) == known[one]
    partners, own = pairs.of(50_000, 0)
    # of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert abs(own.mean() - 0.5) < 5 * (1 / 7.2 / 50_000) ** 0.5
    assert own.var() == pytest.approx(1 / 7.2, rel=0.02)
    assert np.bincount(partners // 5000, minlength=10).max() < 5000 + 5 * 5000**0.5
    assert not np.array_equal(partners, pairs.of(50_000, 1)[0])


def test_what_isnt_there_stays_zeros_and_is_mixed_with_its_like() -> None:
    split = toy.Gappy(make_split(60, seed=1), {"m2": list(range(0, 60, 3))})
    change = Augmentation(AugmentSettings.model_validate(NOISY), 0, {}, make_split(2).inputs, False)
    loader = Loader(split, ["m1", "m2"], 7, shuffle=True, num_classes=3, pairs=Pairs(0.4, 7), vary=Varying(change))
    for batch in loader.epoch(0):
        found = loader.varied(batch.to(torch.device("cpu")), 0)
        assert found.partner is not None
        there = torch.from_numpy(split.present["m2"])
        assert torch.equal(there[batch.index], there[found.partner.index])
        assert bool((found.inputs["m2"] != 0).any(dim=1).eq(there[batch.index]).all())
        assert bool((found.inputs["m1"] != 0).all(dim=1).any())


def test_labels_and_logits_are_mixed_as_inputs_are() -> None:
    g = torch.Generator().manual_seed(0)
    logits, own = torch.randn(6, 4, generator=g, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0, 0.9])
    label, other = torch.tensor([0, 1, 2, 3, 1, 0]), torch.tensor([1, 1, 0, 2, 3, 2])
    x, y = (torch.rand(6, 3, generator=g) for _ in range(2))
    batch = Batch({"m1": x}, label, torch.arange(6), torch.ones(6), 6.0, partner=Partner({"m1": y}, other, other, own))
    plain = Augmentation(AugmentSettings(mixup=0.5), 0, {}, {"m1": x}, False)
    mixed, part = Varying(plain)(batch, 0), own.double().unsqueeze(1)
    assert torch.allclose(mixed.inputs["m1"].double(), part * x.double() + (1 - part) * y.double())
    soft = part * torch.nn.functional.one_hot(label, 4) + (1 - part) * torch.nn.functional.one_hot(other, 4)
    wanted = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(losses.task(logits, batch)) == pytest.approx(float(wanted), rel=1e-12)
    one, two = (torch.randn(6, 2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    told = losses.mixed_logits(one, two, batch, 3.0)
    shares = part.unsqueeze(2) * (one / 3).softmax(dim=2) + (1 - part.unsqueeze(2)) * (two / 3).softmax(dim=2)
    assert torch.allclose((told / 3).softmax(dim=2), shares, atol=1e-7)
    assert bool(torch.isfinite(told).all())


@pytest.mark.parametrize("routing", [{}, {"rule": "soft", "signal": "both"}, {"rule": "entropy"}])
def test_mixed_instances_have_their_teachers_mixed_from_a_table_or_live(routing: Any, tmp_path: Path) -> None:
    settings = toy.merged(QUICK, {"augment": {**NOISY, "mixup": 0.5}, "routing": routing,
                                  "specialise": {"task": 0.5}})  # fmt: skip
    for mode in ("always", "never"):
        toy.run(tmp_path / mode, **toy.merged(settings, {"distill": {"cache": {"mode": mode}}}))
    cached, live = (weights(tmp_path / mode, "distill") for mode in ("always", "never"))
    assert all(torch.allclose(cached[name], live[name], atol=1e-5) for name in cached)


def test_the_very_view_of_mixed_instances_is_mixed_in_every_modality(tmp_path: Path) -> None:
    found = seen_by_teachers(tmp_path, {"mixup": 1.0, "teachers": "same"})
    data, _ = toy.make_split(80, seed=1).fetch(np.arange(80), ["m1", "m2"])
    for student, teachers in zip(found["student"], found["teachers"], strict=True):
        assert torch.equal(teachers["m1"], student["m1"])
        assert not torch.allclose(teachers["m2"], data["m2"][student["index"]])


@pytest.mark.parametrize("method", BASELINES)
def test_methods_mix_or_say_why_not(method: str, tmp_path: Path) -> None:
    reads_one = {"crd", "rkd", "fitnets", "ofa", "c2kd", "dkd", "mgdfr"}
    settings: dict[str, Any] = {
        "method": method, "alone": {"enabled": False}, "augment": {"mixup": 0.5}, "distill": {"epochs": 1},
        "baseline": {"teacher_epochs": 1},
    }  # fmt: skip
    if method in reads_one:
        with pytest.raises(ConfigError, match=f"method {method} can't learn by augment.mixup: it ") as error:
            toy.run(tmp_path, **settings)
        assert "\n" not in str(error.value)
        return
    for mode in ("always", "never"):
        toy.run(tmp_path / mode, **toy.merged(settings, {"distill": {"cache": {"mode": mode}}}))
    cached, live = (weights(tmp_path / mode, "distill") for mode in ("always", "never"))
    assert all(torch.allclose(cached[name], live[name], atol=1e-5) for name in cached)


def test_mixtures_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    tokens = {"text": torch.zeros(2, 9, dtype=torch.int32)}
    for samples, forms, dense, said in (
        (tokens, {}, False, "text is whole numbers, of which a mixture means nothing"),
        ({"audio": torch.rand(2, 2, 9)}, {"audio": Form("audio", rows=("input_values", "attention_mask"))}, False,
         "audio comes with a mask of its padding"),
        ({"rgb": torch.rand(2, 3, 9, 9)}, {}, True, r"augment\.mixup mixes classes, and the labels are maps"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Augmentation(AugmentSettings(mixup=0.2), 0, forms, samples, dense)
    with pytest.raises(ConfigError, match="mixup makes a new view in each epoch, which no cache holds"):
        load("av-digits", ["augment.mixup=0.2", "augment.teachers=views"])


def seen_by_teachers(folder: Path, augment: dict[str, Any], **settings: Any) -> dict[str, list[dict[str, Tensor]]]:
    """What the frozen teachers are given during stage 3, in its order, and what the student learns from."""
    from mstdistill.stages.distill import Distill
    from mstdistill.teachers.ensemble import Ensemble

    seen: dict[str, list[dict[str, Tensor]]] = {"student": [], "teachers": []}
    with pytest.MonkeyPatch.context() as patch:
        learn, forward = Distill.losses, Ensemble.forward

        def losses(self: Distill, module: Any, batch: Any, epoch: int) -> Any:
            seen["student"].append({**batch.inputs, "index": batch.index})
            return learn(self, module, batch, epoch)

        def asked(self: Ensemble, inputs: Any) -> Any:
            if seen["student"]:
                seen["teachers"].append(dict(inputs))
            return forward(self, inputs)

        patch.setattr(Distill, "losses", losses)
        patch.setattr(Ensemble, "forward", asked)
        # soft: live teachers are asked as a whole
        toy.run(folder, augment=augment, routing={"rule": "soft"}, **toy.merged(QUICK, settings))
    return seen


def test_teachers_see_what_the_recipe_says(tmp_path: Path) -> None:
    never = {"distill": {"cache": {"mode": "never"}}}
    clean = seen_by_teachers(tmp_path / "clean", NOISY, **never)
    same = seen_by_teachers(tmp_path / "same", {**NOISY, "teachers": "same"})  # live by itself
    data, _ = toy.make_split(80, seed=1).fetch(np.arange(80), ["m1", "m2"])
    for found in (clean, same):
        assert len(found["student"]) == len(found["teachers"]) == 15
        for student, teachers in zip(found["student"], found["teachers"], strict=True):
            assert not torch.equal(student["m1"], data["m1"][student["index"]])
            assert torch.equal(teachers["m2"], data["m2"][student["index"]])  # the student doesn't see it
            of_data, of_student = (
                torch.equal(teachers["m1"], x) for x in (data["m1"][student["index"]], student["m1"])
            )
            assert (of_data, of_student) == ((True, False) if found is clean else (False, True))


def test_cached_views_are_the_ones_that_the_student_sees(tmp_path: Path) -> None:
    """From two tables in turn, and live on the views of two epochs: the same student."""
    augment = {**NOISY, "teachers": "views", "views": 2}
    cached = seen_by_teachers(tmp_path / "cached", augment)
    assert not cached["teachers"]
    rows = [torch.cat([step["index"] for step in cached["student"][i : i + 5]]).argsort() for i in (0, 5, 10)]
    views = [torch.cat([step["m1"] for step in cached["student"][i : i + 5]])[order]
             for i, order in zip((0, 5, 10), rows, strict=True)]  # fmt: skip
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])
    assert {path.name for path in (tmp_path / "cached" / "cache").iterdir()} == {
        f"{name}-view{view}" for name in ("student-train", "teachers-train") for view in (0, 1)
    } | {"student-validation"}
    seen_by_teachers(tmp_path / "live", augment, distill={"cache": {"mode": "never"}})
    both = [weights(tmp_path / run, "distill") for run in ("cached", "live")]
    assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


@pytest.mark.parametrize("augment", [{"teachers": "same"}, {"teachers": "views"}, {"mixup": 0.5}])
def test_soft_labels_of_rounds_are_of_the_data_as_they_are(augment: dict[str, Any], tmp_path: Path) -> None:
    """From a table made before the round: its networks change meanwhile."""
    toy.run(tmp_path, augment={**NOISY, **augment}, rounds={"count": 1, "epochs": 2}, **QUICK)
    facts = json.loads((tmp_path / "round-1" / "result.json").read_text())
    assert facts["soft_labels"].startswith("table of [80, 1, 3]")
    assert np.isfinite(facts["history"][-1]["train/loss"])


def test_views_are_refused_where_nobody_sees_them(tmp_path: Path) -> None:
    from mstdistill import Teacher, distill
    from tests.conftest import MLP, make_split

    with pytest.raises(ConfigError, match=r"augment\.teachers=views: no teacher sees m1"):
        distill(MLP(6, 12, 8, 3), [Teacher("other", MLP(5, 12, 8, 3), ("m2",))], make_split(40, seed=1),
                make_split(20, seed=2), "m1", out=tmp_path, quiet=True,
                settings={**toy.SETTINGS, "augment": {**NOISY, "teachers": "views"}})  # fmt: skip


@pytest.mark.parametrize(("augment", "recorded"), [
    (NOISY, True), ({**NOISY, "mixup": 0.5}, False), ({**NOISY, "teachers": "views"}, False),
    ({**NOISY, "teachers": "same"}, False),
])  # fmt: skip
def test_recorded_steps_are_augmented_or_that_is_said(
    augment: dict[str, Any], recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A step is changed before the recording sees it: as without, within the rounding of its learning rate."""
    graphs: list[StepGraph] = []
    make = StepGraph.__init__

    def remembered(self: StepGraph, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        graphs.append(self)

    monkeypatch.setattr(StepGraph, "__init__", remembered)
    monkeypatch.setattr(loop, "recorder_for", lambda device: Again())
    for graph in (False, True):
        toy.run(
            tmp_path / str(graph), augment=augment, quiet=False, **toy.merged(QUICK, {"run": {"cuda_graph": graph}})
        )
    assert len(graphs) == recorded
    assert all(graph.replays for graph in graphs)
    assert ("distill: steps are not recorded" in " ".join(capsys.readouterr().out.split())) != recorded
    plain, found = (weights(tmp_path / str(graph), "distill") for graph in (False, True))
    assert all(torch.allclose(plain[name], found[name], atol=1e-5) for name in plain)


def test_data_held_on_a_device_are_paired_alike() -> None:
    split, pairs = make_split(37), Pairs(0.4, 7)
    plain = Loader(split, ["m1"], 8, shuffle=True, pairs=pairs)
    near = Loader(ResidentSplit(Loader(split, ["m1"], 5), torch.device("cpu")), ["m1"], 8, shuffle=True, pairs=pairs)
    workers = Loader(split, ["m1"], 8, shuffle=True, pairs=pairs, workers=1)
    for batches in zip(plain.epoch(1), near.epoch(1), workers.epoch(1), strict=True):
        a, *others = (batch.to(torch.device("cpu")) for batch in batches)
        for b in others:
            assert a.partner is not None
            assert b.partner is not None
            assert torch.equal(a.partner.inputs["m1"], b.partner.inputs["m1"])
            assert torch.equal(a.partner.label, b.partner.label)
            assert torch.equal(a.partner.own, b.partner.own)


def test_stages_are_shared_by_runs_of_one_augmentation() -> None:
    crop = "augment.modalities={image: [{crop: 1}]}"
    keys = [
        shareable(load("av-digits", words), "code", "data") for words in ([], ["augment.mixup=0.2"], [crop], [crop])
    ]
    assert len({key["cotrain"] for key in keys}) == 3
    assert keys[2] == keys[3]
