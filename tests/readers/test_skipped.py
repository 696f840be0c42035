"""Laws of the report: what is wrong stops a run or is recorded; what is not wanted is recorded."""

import pytest
from refusals import refuses

from geoalign_hf.readers.skipped import SkipReport


def test_what_is_wrong_stops_the_run_with_its_message_and_cause():
    cause = OSError("gone")
    with pytest.raises(ValueError, match=r"^a.png is cut. Replace it.$") as caught:
        SkipReport().refuse("bad image", "a.png is cut. Replace it.", cause)
    assert caught.value.__cause__ is cause


def test_where_errors_are_skipped_they_are_recorded_and_the_run_goes_on():
    report = SkipReport(on_error="skip")
    for name in ("a", "b"):
        report.refuse("bad image", f"{name}.png is cut.")
    report.skip("crowd", "annotation 3 is a crowd.")
    assert report.entries[1] == {"kind": "bad image", "message": "b.png is cut."}
    assert report.count_kinds() == {"bad image": 2, "crowd": 1}


def test_another_choice_is_refused():
    with refuses("on_error", "'ignore'", "'stop'", "'skip'"):
        SkipReport(on_error="ignore")
