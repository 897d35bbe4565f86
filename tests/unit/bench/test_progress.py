"""What is said of how long a measurement takes."""

from switchlora.bench.progress import Progress, readable


def test_it_says_how_long_at_first_and_then_every_half_minute() -> None:
    times, said = iter([0.0, 5.0, 20.0, 32.0, *(32.0 + 14 * number for number in range(1, 11))]), list[str]()
    progress = Progress(10, said.append, lambda: next(times))
    progress.begin()  # the first warm-up round is no measure
    progress.begin()
    progress.announce("3 methods")
    for number in range(1, 11):
        progress.tell(number)
    assert said == [
        "3 methods, 10 rounds: about 2 min",
        "round 3 of 10, about 98 s to go",
        "round 6 of 10, about 56 s to go",
        "round 9 of 10, about 14 s to go",
    ]


def test_readable() -> None:
    assert (readable(7.4), readable(600)) == ("7 s", "10 min")
