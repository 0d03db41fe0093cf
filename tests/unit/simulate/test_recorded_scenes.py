"""Both simulators return what was recorded, to nine decimals, in 200 random scenes."""

import json
from pathlib import Path

import pytest
import recorded_scenes


@pytest.mark.timeout(900)  # the first run compiles both simulators
@pytest.mark.long
def test_scenes_are_as_recorded():
    recorded = json.loads(Path(recorded_scenes.__file__).with_suffix(".json").read_text())
    found = recorded_scenes.digests()
    assert len(found) == 200 and found.keys() == recorded.keys()
    assert [name for name, digest in found.items() if digest != recorded[name]] == []
