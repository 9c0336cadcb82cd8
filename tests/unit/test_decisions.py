import json

import pytest

from phototagger.decisions import PATH, read_decisions
from phototagger.errors import UserError

PHOTO, OTHER, PROPOSAL, LATER = (digit * 64 for digit in "abcd")


@pytest.fixture
def decide(tmp_path):
    (tmp_path / PATH).parent.mkdir()

    def write(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / PATH).write_text("\n".join(texts) + "\n")
        return read_decisions(tmp_path)

    return write


def line(decision, photo=PHOTO, proposal=PROPOSAL, **more):
    return {"sha256": photo, "decision": decision, "proposal": proposal} | more


def test_no_file_decides_nothing(tmp_path):
    decisions = read_decisions(tmp_path)
    assert not decisions.rejected(PHOTO)
    assert not decisions.approved(PHOTO, PROPOSAL)


def test_the_last_decision_counts(decide):
    decisions = decide(line("rejected"), line("approved"), "", line("rejected", OTHER))
    assert decisions.approved(PHOTO, PROPOSAL)
    assert not decisions.rejected(PHOTO)
    assert decisions.rejected(OTHER)
    assert not decide(line("approved"), line("rejected")).approved(PHOTO, PROPOSAL)


def test_an_approval_is_of_one_proposal(decide):
    decisions = decide(line("approved", by="somebody"))
    assert not decisions.approved(PHOTO, LATER)
    assert not decisions.approved(PHOTO, None)
    assert not decide(line("approved", proposal=None)).approved(PHOTO, PROPOSAL)


def test_a_rejection_is_of_the_photo_whatever_is_proposed(decide):
    assert decide(line("rejected", proposal=None)).rejected(PHOTO)


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ('{"sha256": "aa', "not JSON"),
        ("[]", "not an object"),
        (line("approve"), "valid are: approved, rejected"),
        (line(None), "decision"),
        (line("approved", photo="12"), "sha256"),
        (line("approved", photo=None), "sha256"),
        (line("approved", proposal=PROPOSAL.upper()), "proposal"),
    ],
)
def test_an_error_names_the_line(decide, bad, cause):
    with pytest.raises(UserError, match="line 2") as raised:
        decide(line("rejected"), bad)
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_decision_is_about_the_picture_whatever_is_embedded_in_the_file(tmp_path, decide):
    decide(line("approved", PHOTO), line("rejected", OTHER))
    embedded = {OTHER: PHOTO}  # the same photo, with metadata in it
    decisions = read_decisions(tmp_path, lambda sha256: embedded.get(sha256, sha256))
    assert decisions.rejected(PHOTO)
    assert not decisions.approved(PHOTO, PROPOSAL)
