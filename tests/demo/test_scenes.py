import itertools
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lvspec_cli.demo.scenes import (
    COLOURS,
    DIRECTIONS,
    Scene,
    colour_at,
    is_visible,
    position,
    sample_scene,
    scene_from_dict,
)

scenes = st.integers(0, 2**31).map(lambda seed: sample_scene(random.Random(seed)))


def test_scenes_vary_as_far_as_the_world_goes() -> None:
    drawn = [sample_scene(random.Random(seed)) for seed in range(400)]
    assert {scene.frame_rate for scene in drawn} == {12, 15, 20, 24, 25, 30}
    lengths = [scene.duration for scene in drawn]
    assert 2.0 <= min(lengths) < 2.5 < 11.5 < max(lengths) <= 12.0
    assert len({(scene.width, scene.height) for scene in drawn}) == 8
    assert {len(scene.events) for scene in drawn} == {0, 1, 2}
    kinds = {event.kind for scene in drawn for event in scene.events}
    assert kinds == {"appears", "disappears", "changes colour"}
    assert {item.motion for scene in drawn for item in scene.objects} == set(DIRECTIONS)
    assert min(scene.noise for scene in drawn) < 1 < 6 < max(scene.noise for scene in drawn)


@given(scenes)
def test_facts_of_a_scene_are_unambiguous(scene: Scene) -> None:
    assert 2 <= len(scene.objects) <= 4
    assert len({item.shape for item in scene.objects}) == len(scene.objects)
    colours = [item.colour for item in scene.objects]
    assert colours == sorted(set(colours), key=list(COLOURS).index)
    for item in scene.objects:
        assert item.new_colour not in colours


@given(scenes)
@settings(max_examples=50)
def test_objects_stay_inside_and_apart_while_visible(scene: Scene) -> None:
    shorter = min(scene.width, scene.height)
    for step in range(21):
        time = scene.duration * step / 20
        seen = [item for item in scene.objects if is_visible(item, time)]
        centres = [position(item, time, scene.duration) for item in seen]
        for item, (x, y) in zip(seen, centres, strict=True):
            reach = item.radius * shorter - 1e-6
            assert reach <= x * scene.width <= scene.width - reach
            assert reach <= y * scene.height <= scene.height - reach
        for (one, here), (other, there) in itertools.combinations(zip(seen, centres, strict=True), 2):
            gap = ((here[0] - there[0]) * scene.width) ** 2 + ((here[1] - there[1]) * scene.height) ** 2
            assert gap**0.5 > (one.radius + other.radius) * shorter * 0.95


@given(scenes)
def test_events_come_in_order_and_change_what_is_seen(scene: Scene) -> None:
    times = [event.time for event in scene.events]
    assert times == sorted(times)
    for event in scene.events:
        item = scene.objects[event.index]
        before, after = event.time - 0.05, event.time + 0.05
        if event.kind == "appears":
            assert (is_visible(item, before), is_visible(item, after)) == (False, True)
        elif event.kind == "disappears":
            assert (is_visible(item, before), is_visible(item, after)) == (True, False)
        else:
            assert (colour_at(item, before), colour_at(item, after)) == (item.colour, item.new_colour)


@given(scenes)
def test_a_scene_survives_json(scene: Scene) -> None:
    assert scene_from_dict(json.loads(json.dumps(scene.as_dict()))) == scene
