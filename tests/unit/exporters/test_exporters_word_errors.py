"""How many words an exported recogniser may get wrong: counted, bound, left out where they mean nothing."""

from __future__ import annotations

import pytest
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import ParityFailed
from aimass_exporters.speech.word_errors import ReadSentence, measure_word_errors, plain_words

SAID = "One two three four, five six seven eight nine ten."


def report_of(*read: ReadSentence, max_increase: float) -> ParityReport:
    report = ParityReport()
    measure_word_errors(read, max_increase, report)
    return report


def test_case_and_punctuation_are_not_errors() -> None:
    assert plain_words(" It's -- fine, isn't it?") == plain_words("it's fine isnt it")


def test_only_what_pytorch_gets_right_counts_and_the_bound_is_kept() -> None:
    wrong = SAID.replace("ten", "tin")
    both_wrong = report_of(ReadSentence(SAID, wrong, wrong), max_increase=0.0)
    assert [measure.value for measure in both_wrong.measures] == [0.0]
    report = report_of(ReadSentence(SAID, SAID, SAID), ReadSentence(SAID, SAID, wrong), max_increase=0.04)
    (measure,) = report.measures
    assert (measure.name, measure.num_samples) == ("word_error_increase", 20)
    assert measure.value == pytest.approx(1 / 20)
    with pytest.raises(ParityFailed, match="word_error_increase"):
        report.record()


def test_words_that_are_better_by_chance_make_up_for_others() -> None:
    wrong = SAID.replace("ten", "tin")
    read = [ReadSentence(SAID, wrong, SAID), ReadSentence(SAID, SAID, wrong)]
    assert report_of(*read, max_increase=0.0).record().measures[0].value == 0.0


def test_a_model_that_does_not_understand_the_voice_is_not_judged_by_it() -> None:
    assert report_of(ReadSentence(SAID, "la la la", ""), max_increase=0.0).measures == []
