import hashlib

from luthier.core.digest import digest_json, digest_text


def test_text_is_its_sha256():
    assert digest_text("ü") == hashlib.sha256("ü".encode()).hexdigest()


def test_json_is_canonical():
    assert digest_json({"b": 1, "a": [1, "ü"]}) == hashlib.sha256('{"a":[1,"ü"],"b":1}'.encode()).hexdigest()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_json([1, 2]) != digest_json([2, 1])
    assert digest_json((1, 2)) == digest_json([1, 2])
