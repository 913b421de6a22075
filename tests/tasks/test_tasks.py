"""Classes, boxes, embeddings and free data: read, sent, received, scored."""

import math

import pytest
import torch

from splitsight.tasks import TASKS, Free, Task, read_answer
from splitsight.tasks.classify import Classify
from splitsight.tasks.detect import Detect
from splitsight.tasks.embed import Embed
from splitsight.wire.v1 import split_inference_pb2 as pb

LABELS = ["cat", "dog", "bird", "fish", "bee", "fly"]


def sent(reading):
    """As it arrives at the other end."""
    answer = pb.Answer(sequence=3)
    reading.put(answer)
    return read_answer(pb.Answer.FromString(answer.SerializeToString()))


def test_classes():
    logits = torch.zeros(2, 6)
    logits[0, 1] = 3
    first, second = Classify(LABELS).read(logits)
    assert first.headline() == f"dog {math.exp(3) / (math.exp(3) + 5):.0%}" and first.best().name == "dog"
    assert len(first.top) == 5 and len(second.top) == 5
    back = sent(first)
    assert [label[:2] for label in back.top] == [label[:2] for label in first.top]
    assert back.to_dict()["top"][0] == {"index": 1, "name": "dog", "probability": pytest.approx(0.8007, abs=1e-3)}
    utility = Classify(LABELS).utility(logits, [1, 5])
    assert utility["top1"].tolist() == [1, 0] and utility["top5"][0] == 1


def found(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return {"boxes": torch.tensor(boxes), "scores": torch.tensor(scores), "labels": torch.tensor(labels)}


def test_boxes():
    task = Detect(LABELS)
    output = [
        found(
            ((0.1, 0.1, 0.5, 0.5), 0.9, 0),
            ((0.12, 0.1, 0.5, 0.5), 0.8, 0),  # the same object
            ((0.12, 0.1, 0.5, 0.5), 0.7, 1),  # another class may be there too
            ((0.6, 0.6, 1.4, 0.9), 0.5, 2),
            ((0.0, 0.0, 0.1, 0.1), 0.1, 3),  # not sure enough
        ),
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)},
    ]
    first, second = task.read(output)
    assert [b.label.name for b in first.boxes] == ["cat", "dog", "bird"] and first.boxes[2].right == 1
    assert first.headline() == "3 objects: cat 90%, dog 70%, bird 50%"
    assert second.headline() == "0 objects" and second.best() is None
    back = sent(first)
    assert back.boxes[0].label.name == "cat" and back.boxes[0].left == pytest.approx(0.1)
    assert sent(second).boxes == ()
    assert first.to_dict()["boxes"][0]["box"] == pytest.approx([0.1, 0.1, 0.5, 0.5])


def test_average_precision_of_what_is_right_and_of_what_is_not():
    task = Detect(LABELS)
    truth = [found(((0.1, 0.1, 0.5, 0.5), 1.0, 0)), found(((0.2, 0.2, 0.9, 0.9), 1.0, 1))]
    assert task.utility(truth, truth) == {"map": pytest.approx(1), "map_50": pytest.approx(1)}
    wrong = [found(((0.6, 0.6, 0.9, 0.9), 1.0, 0)), found(((0.2, 0.2, 0.9, 0.9), 1.0, 0))]
    assert float(task.utility(wrong, truth)["map"]) == 0
    # one of two classes is found: half of the mean
    half = [truth[0], {k: v[:0] for k, v in truth[1].items()}]
    assert float(task.utility(half, truth)["map"]) == pytest.approx(0.5)


def test_embeddings():
    texts = torch.eye(3, 4)
    task = Embed(LABELS[:3], texts)
    vectors = torch.tensor([[0.0, 2, 0, 0], [3, 0, 0, 4]])
    first, second = task.read(vectors)
    assert first.headline() == "dog 100%" and second.values == pytest.approx((0.6, 0, 0, 0.8))
    back = sent(second)
    assert back.nearest[0].name == "cat" and back.values == pytest.approx(second.values)
    assert task.utility(vectors, [1, 2])["top1"].tolist() == [1, 0]
    assert task.utility(vectors, vectors * 7)["cosine"].tolist() == pytest.approx([1, 1])
    bare = Embed()
    (reading,) = bare.read(vectors[:1])
    assert reading.headline() == "4 numbers" and reading.best() is None and sent(reading).nearest == ()
    with pytest.raises(ValueError, match="no zero-shot labels"):
        bare.utility(vectors, [1, 2])


def test_free_data_for_tasks_of_other_packages():
    back = sent(Free({"depth": [1.5, 2.0], "headline": "2 m away"}))
    assert back.data == {"depth": [1.5, 2.0], "headline": "2 m away"} and back.headline() == "2 m away"
    with pytest.raises(ValueError):
        read_answer(pb.Answer(other={"json": "[1]"}))
    assert read_answer(pb.Answer(sequence=1)) is None


def test_every_task_documents_itself():
    assert {"classify", "detect", "embed"} <= set(TASKS.names())
    assert all(t.__doc__ and issubclass(t, Task) and t.name == name for name, t in TASKS)
