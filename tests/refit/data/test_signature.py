import torch

from refit.data.signature import InputColumn, Signature, Target


def test_inputs_are_split_into_numbers_and_codes_of_categories_wherever_their_columns_stand():
    columns = [
        InputColumn(name="colour", kind="categorical", inputs=["red", "green", "other"]),
        InputColumn(name="size", kind="numeric", inputs=["size", "size is missing"]),
        InputColumn(name="grade", kind="categorical", inputs=["a", "other"]),
        InputColumn(name="is_new", kind="boolean", inputs=["is_new"]),
    ]
    signature = Signature(columns=columns, target=Target(name="y", classes=["no", "yes"]))
    colours, grades, numbers = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 1]), torch.randn(3, 3)
    one_hot = [torch.nn.functional.one_hot(*given).float() for given in ((colours, 3), (grades, 2))]
    x = torch.cat([one_hot[0], numbers[:, :2], one_hot[1], numbers[:, 2:]], dim=1)
    found, codes = signature.split(x)
    assert torch.equal(found, numbers)
    assert all(torch.equal(*pair) for pair in zip(codes, (colours, grades), strict=True))
    assert (signature.num_inputs, signature.num_numbers, signature.categories) == (8, 3, [3, 2])


def test_without_categories_all_inputs_are_numbers():
    x = torch.randn(2, 5)
    numbers, codes = Signature.of_numbers(5, 2).split(x)
    assert torch.equal(numbers, x)
    assert codes == []


def test_the_numbers_of_texts_are_split_off_and_those_that_no_ngram_has_are_cut():
    columns = [
        InputColumn(name="title", kind="text", inputs=["title[0]", "title[1]"], num_ngrams=7),
        InputColumn(name="size", kind="numeric", inputs=["size"], means=[1.0], stds=[2.0]),
        InputColumn(name="note", kind="text", inputs=["note[0]"], num_ngrams=3),
        InputColumn(name="grade", kind="categorical", inputs=["a", "other"]),
    ]
    signature = Signature(columns=columns, target=Target(name="y", classes=["no", "yes"]))
    x = torch.tensor([[7.0, 0, 0.5, 3, 1, 0], [-2, 9, -0.5, 0.9, 0, 1]])
    others, texts = signature.split_texts(x)
    assert others.tolist() == [[0.5, 1, 0], [-0.5, 0, 1]]
    assert [text.tolist() for text in texts] == [[[7, 0], [0, 7]], [[3], [0]]]
    numbers, codes = signature.split(x)
    assert signature.restore(numbers).tolist() == [[2.0], [0.0]]
    assert (signature.num_numbers, codes[0].tolist(), [column.name for column in signature.texts]) == (1, [0, 1], ["title", "note"])
