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
