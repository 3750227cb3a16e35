from server.longest_step import WINDOW_S, LongestStep


def test_the_longest_of_the_last_minute_is_told() -> None:
    longest = LongestStep()
    assert longest.seconds(0.0) == 0.0
    for now_s, step_s in ((1.0, 0.2), (2.0, 0.9), (3.0, 0.1), (4.0, 0.3)):
        longest.add(now_s, step_s)
    assert longest.seconds(5.0) == 0.9
    assert longest.seconds(2.0 + WINDOW_S) == 0.9
    assert longest.seconds(2.1 + WINDOW_S) == 0.3
    assert longest.seconds(4.1 + WINDOW_S) == 0.0
