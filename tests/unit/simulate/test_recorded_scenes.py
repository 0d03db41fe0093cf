"""Both simulators return what was recorded, to the last bit, in 200 random scenes."""

import json
from pathlib import Path

import recorded_scenes


def test_scenes_are_as_recorded():
    recorded = json.loads(Path(recorded_scenes.__file__).with_suffix(".json").read_text())
    found = recorded_scenes.digests()
    assert len(found) == 200 and found.keys() == recorded.keys()
    assert [name for name, digest in found.items() if digest != recorded[name]] == []
