"""Secrets of the environment are hidden in texts, and refused where they would be kept."""

import pytest

from common.errors import InputError
from common.secrets import find_secret, redact

KEY = "zq-93/x+Wm77 Lp"
ENVIRONMENT = {
    "OPENAI_API_KEY": KEY,
    "JUDGE_TOKEN": KEY + "-longer",
    "db_password": "correct horse",
    "TOKENIZERS_PARALLELISM": "not-a-secret",
    "USE_TOKEN": "true",
    "HOME": "/home/somebody",
}


def test_every_secret_is_hidden_and_nothing_else():
    text = f"401 for {KEY}-longer, {KEY} and correct horse; not-a-secret, true, /home/somebody"
    assert redact(text, ENVIRONMENT) == "401 for ***, *** and ***; not-a-secret, true, /home/somebody"


def test_a_secret_in_an_address_is_hidden():
    assert redact("https://judge/v1?key=zq-93%2Fx%2BWm77%20Lp&n=1", ENVIRONMENT) == "https://judge/v1?key=***&n=1"
    assert redact("postgres://me:hunter2@host/db", {}) == "postgres***host/db"


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-4f9a8b7c6d5e4f3a2b1c", "hf_abcdefghijklmnop", "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30", "AKIAIOSFODNN7EXAMPLE",
    ],
)  # fmt: skip
def test_what_is_written_like_a_key_is_hidden_and_refused(text):
    assert "***" in redact(text, {})
    assert "environment" in find_secret("note", text, {})


@pytest.mark.parametrize(
    "field",
    ["api_key", "apikey", "API_KEY", "judge_api_key", "access_token", "password", "client_secret", "credentials"],
)
def test_a_field_named_like_a_secret_holds_the_name_of_a_variable(field):
    assert find_secret(field, "OPENAI_API_KEY", {}) is None
    assert find_secret(field, "", {}) is None
    reason = find_secret(field, "swordfish", {})
    assert "put it in the environment and name the variable" in reason
    assert "swordfish" not in reason


def test_a_value_of_the_environment_may_not_stand_in_the_configuration():
    reason = find_secret("url", f"https://judge/?k={KEY}", ENVIRONMENT)
    assert "OPENAI_API_KEY" in reason
    assert KEY not in reason


def test_ordinary_settings_are_not_taken_for_secrets():
    for field, value in [
        ("key", "answer"), ("token", "<|audio_0|>"), ("max_tokens", "96"), ("path", "runs/task-learn-the-basics"),
        ("use", "playground.raters:Answer"), ("address", "ray://head:10001"), ("url", "http://127.0.0.1:8000/v1"),
    ]:  # fmt: skip
        assert find_secret(field, value, {}) is None
    sentence = "The bearer of bad news asked for risk-averse answers."
    assert redact(sentence, {}) == sentence


def test_refusals_of_input_hide_secrets(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    assert str(InputError(f"rollout.num_workers: {KEY!r} is no number")) == "rollout.num_workers: '***' is no number"
