"""Replies find their requests, whatever an engine delivers."""

from dataclasses import replace

from fedsparse.federated.engines.base import Request, unanswered
from fedsparse.federated.replies import by_request

REQUESTS = [Request(client, b"", True) for client in (4, 2, 7)]


def reply(client, reason=""):
    return unanswered(Request(client, b"", True), reason)


def test_replies_follow_the_order_of_the_requests():
    replies = [reply(7), reply(4), reply(2)]
    assert by_request(REQUESTS, replies) == ([[reply(4)], [reply(2)], [reply(7)]], [])


def test_several_of_one_client_stay_together_in_their_order():
    replies = [reply(4, "a"), reply(2), reply(4, "b"), reply(7)]
    assert by_request(REQUESTS, replies)[0] == [[reply(4, "a"), reply(4, "b")], [reply(2)], [reply(7)]]


def test_a_missing_one_is_a_failure():
    found, stray = by_request(REQUESTS, [reply(2)])
    assert found == [
        [reply(4, "the engine delivered no answer")],
        [reply(2)],
        [reply(7, "the engine delivered no answer")],
    ]
    assert stray == []


def test_those_not_asked_are_set_aside():
    found, stray = by_request(REQUESTS[:1], [reply(9), reply(4)])
    assert found == [[reply(4)]]
    assert stray == [replace(reply(9), reason="the client was not asked in this exchange")]
