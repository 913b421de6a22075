from adversary.methods import ATTACKS


def test_published_settings_are_the_papers():
    for name in ("do", "db", "dmb", "dmb-multi"):
        paper = ATTACKS.get(name).setting("paper")[1]
        published = {"iterations": 1500, "lr": 0.1, "schedule": "constant", "relative": False, "tv": 1.0, "restarts": 1}
        assert published.items() <= paper.items()
    assert ATTACKS.get("dmb").setting("paper")[1]["steps"] == 20
    multi = ATTACKS.get("dmb-multi").setting("paper")[1]
    assert (multi["smoothing"], multi["steps"], multi["shared"]) == (5.0, 10, False)
    for name in ("dmb", "dmb-multi"):
        assert ATTACKS.get(name).setting("paper")[1]["lambda_txt"] == 10
