"""The engine against plain runs of the model: any architecture, any batch, nothing modified."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sample_networks import CASES
from torch import nn
from torch.func import functional_call

from repairopt import ErrorRate, solve_repair
from repairopt.errors import ModelError
from repairopt.network import Engine, Remembering
from repairopt.verify.judge import is_constant

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def engine_of(case, model, names=None, **options):
    parameters = dict(model.named_parameters(remove_duplicate=False))
    indices = {name: torch.arange(parameters[name].numel()) for name in names or case.early}
    return Engine(model, indices, forward_fn=case.forward_fn, **options)


def moved(case, model, engine, delta, inputs):
    """Outputs by torch.func on the user's own model, without the engine."""
    model.eval()
    weights = dict(model.named_parameters())
    for name, value in engine.weights(engine.as_delta(delta)).items():
        weights[name] = value
    run = (lambda x: functional_call(model, weights, (x,))) if case.forward_fn is None else None
    if run is None:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict({**state, **{k: v for k, v in weights.items() if k in state}})
        outputs = case.forward_fn(model, inputs)
        model.load_state_dict(state)
        return outputs.detach()
    return run(inputs).detach()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_outputs_equal_a_plain_run_at_any_weight_change(case, dtype):
    model, inputs = case.model(dtype), case.inputs(9, dtype)
    for names in (case.early, (case.last,)):
        engine = engine_of(case, model, names)
        tol = 1e-5 if dtype == torch.float32 else 1e-12
        found = engine.predict()(inputs)
        assert found.dtype == dtype
        torch.testing.assert_close(found, case.logits(model, inputs).detach(), rtol=tol, atol=tol)
        delta = torch.randn(engine.n, dtype=dtype) / 3
        changed = engine.predict(delta)(inputs)
        torch.testing.assert_close(changed, moved(case, model, engine, delta, inputs), rtol=tol, atol=tol)
        assert not torch.allclose(changed, found)


@EVERY
def test_nothing_about_the_model_changes(case, fingerprint):
    model, inputs = case.model().train(), case.inputs()
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    before = fingerprint(model)
    engine = engine_of(case, model)
    deltas = torch.randn(3, engine.n, dtype=torch.float64)
    engine.predict(deltas[0])(inputs)
    engine.values(lambda predict: predict(inputs).square().mean(), deltas)
    assert fingerprint(model) == before


def test_dropout_and_batch_norm_run_in_evaluation_mode_also_for_a_model_in_training():
    case = CASES[3]
    model, inputs = case.model(), case.inputs()
    expected = model(inputs).detach()
    model.train()
    for names in (case.early, (case.last,)):
        torch.testing.assert_close(engine_of(case, model, names).predict()(inputs), expected)
    assert model.training
    assert model.drop.training


@EVERY
def test_many_weight_changes_at_once_equal_a_loop(case):
    model, inputs = case.model(), case.inputs()
    engine = engine_of(case, model)
    deltas = torch.randn(5, engine.n, dtype=torch.float64) / 2
    score = lambda predict: F.softmax(predict(inputs), -1)[..., 0].mean()  # noqa: E731
    together = engine.values(score, deltas)
    alone = torch.stack([score(engine.predict(delta)) for delta in deltas])
    torch.testing.assert_close(together, alone)
    assert together.dtype == torch.float64


def test_a_function_that_reads_numbers_is_looped(small_net, small_inputs):
    engine = Engine(small_net, {"2.weight": torch.arange(48)})

    def score(predict):
        count = sum(int(label) for label in predict(small_inputs).argmax(-1))
        return count / 10

    deltas = torch.randn(4, 48, dtype=torch.float64)
    assert engine.values(score, deltas).tolist() == [score(engine.predict(delta)) for delta in deltas]
    assert engine.values(score, deltas[:1]).shape == (1,)


@EVERY
def test_a_tiny_memory_limit_gives_the_same_numbers(case):
    model, inputs = case.model(), case.inputs(23)
    large, small = engine_of(case, model), engine_of(case, model, memory_limit=20_000)
    tiny = engine_of(case, model, memory_limit=1)
    delta = torch.randn(large.n, dtype=torch.float64) / 3
    for engine in (small, tiny):
        torch.testing.assert_close(engine.predict(delta)(inputs), large.predict(delta)(inputs))
        score = lambda predict: predict(inputs).square().mean()  # noqa: E731
        deltas = torch.stack([delta, -delta, 2 * delta])
        torch.testing.assert_close(engine.values(score, deltas), large.values(score, deltas))
    pieces = [span for span, _ in tiny.batches(inputs, None, 10)]
    assert len(pieces) == 23


def test_no_layer_of_a_pass_without_gradients_leaves_the_cache():
    model = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    inputs, sizes = torch.randn(100, 1, 34, 34), []
    engine = Engine(model, {"0.weight": torch.arange(64 * 9)})
    engine.predict()(inputs[:1])  # traces the network
    with torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: sizes.append(out.nbytes)):
        outputs = engine.predict()(inputs)
    torch.testing.assert_close(outputs, model(inputs).detach())
    assert 2**22 < max(sizes) <= 2**23  # of 25 MiB for all rows


def test_what_comes_before_the_first_changed_layer_is_computed_once():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs, other, seen = torch.randn(50, 4), torch.randn(50, 4), []

    def first(module, args, out):
        if isinstance(module, nn.Linear) and module.out_features == 5:
            seen.append(len(out))

    engine = Engine(model, {"2.weight": torch.arange(30)})
    engine.predict()(inputs)
    with torch.nn.modules.module.register_module_forward_hook(first):
        for delta in torch.randn(5, 30):
            engine.predict(delta)(inputs)
            engine.predict(delta)(inputs.view(50, 4))  # another view of the same memory
        engine.values(lambda predict: predict(inputs).mean(), torch.randn(7, 30))
        assert seen == []
        engine.predict()(other)
        engine.predict(torch.ones(30))(other)
    assert sum(seen) == 51  # one probe, then all 50 once


def test_inputs_that_were_changed_in_place_are_run_anew():
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(8, 4)
    engine = Engine(model, {"2.weight": torch.arange(10)})
    first = engine.predict()(inputs).clone()
    inputs += 1
    assert not torch.allclose(engine.predict()(inputs), first)
    torch.testing.assert_close(engine.predict()(inputs), model(inputs).detach())


def test_chosen_samples_and_the_way_from_the_frontier(small_net, small_inputs):
    engine = Engine(small_net, {"2.weight": torch.arange(48)})
    pick = torch.tensor([4, 0, 4, 29])
    expected = small_net(small_inputs).detach()
    torch.testing.assert_close(engine.outputs(small_inputs, engine.as_delta(None), pick), expected[pick])
    torch.testing.assert_close(engine.run({}, engine.frontier(small_inputs)), expected)


def test_evaluations_count_samples(small_net, small_inputs):
    engine = Engine(small_net, {"2.weight": torch.arange(48)})
    engine.predict()(small_inputs)
    assert engine.evaluations == 30


def test_remembering_runs_each_set_once(small_net, small_inputs):
    engine = Engine(small_net, {"4.bias": torch.arange(3)})
    predict = Remembering(engine, torch.tensor([0.0, 1e6, 0.0]))
    assert predict(small_inputs) is predict(small_inputs.view(30, 4))
    assert engine.evaluations == 30


def test_a_network_is_constant_where_all_inputs_get_one_label_that_is_not_simply_right(small_net, small_inputs):
    engine = Engine(small_net, {"4.bias": torch.arange(3)})
    one, several = Remembering(engine, torch.tensor([0.0, 1e6, 0.0])), Remembering(engine)
    assert not is_constant(one, []), "nothing was run yet"
    for predict in (one, several):
        predict(small_inputs)
    assert len(several(small_inputs).argmax(1).unique()) > 1
    assert is_constant(one, [])
    assert is_constant(one, [(small_inputs, torch.arange(30) % 2)])
    assert not is_constant(one, [(small_inputs, torch.ones(30, dtype=torch.long))])
    assert not is_constant(several, [])


def test_scale_is_the_larger_of_the_weight_and_the_rms_of_its_parameter():
    model = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    engine = Engine(model, {"0.weight": torch.arange(4)})
    assert engine.scale.tolist() == [3.0, 4.0, 2.5, 2.5]
    assert engine.initial.tolist() == [3.0, -4.0, 0.0, 0.0]


def test_a_parameter_of_zeros_takes_the_size_of_the_others():
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0], [0.0]]))
        model.bias.zero_()
    assert Engine(model, {"bias": torch.arange(2)}).scale.tolist() == [2.0, 2.0]  # sqrt((16 + 0 + 0 + 0) / 4)
    with torch.no_grad():
        model.bias.fill_(1e-9)
    assert Engine(model, {"bias": torch.arange(2)}).scale.tolist() == pytest.approx([2.0, 2.0])
    with torch.no_grad():
        model.bias.fill_(0.01)
    assert Engine(model, {"bias": torch.arange(2)}).scale.tolist() == pytest.approx([0.01, 0.01])
    with torch.no_grad():
        model.bias.zero_()
    with torch.no_grad():
        model.weight.zero_()
    assert Engine(model, {"bias": torch.arange(2)}).scale.tolist() == [1.0, 1.0]


# ------------------------------------------------------------------------ models and data that cannot be used


class Random(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(1)


class ForgetfulDropout(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))  # its training flag is not passed on


class BatchMean(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class NotANumber(nn.Linear):
    def forward(self, x):
        return super().forward(x).log()


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class OneRowSqueezed(nn.Linear):
    def forward(self, x):
        return super().forward(x).squeeze()


class Record(nn.Linear):
    def forward(self, x):
        return SimpleNamespace(hidden=x[:, 0], logits=super().forward(x))


def test_it_refuses_models_it_cannot_rely_on():
    cases = [
        (Random(4, 3), "two passes over the same 5 inputs disagree", "randomness in forward"),
        (ForgetfulDropout(4, 3), "two passes", "dropout called without its training flag"),
        (BatchMean(4, 3), "depends on the others in its batch", "batch statistics"),
        (NotANumber(4, 3), "outputs hold NaN", ""),
        (Pair(4, 3), "returned tuple of shapes", "Choose with Classifier(model, lambda model, x: model(x)[0])"),
        (Record(4, 3), "returned SimpleNamespace of shapes", "lambda model, x: model(x).logits)"),
        (OneRowSqueezed(4, 3), "for one input alone has shape (3,); expected (1, 3)", "Look for .squeeze()"),
        (nn.Linear(5, 3), "cannot run on inputs of shape (30, 4)", "Check the shape of the data"),
        (nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), "returned shape (15,)", "with Classifier(model, lambda"),
    ]
    for model, *snippets in cases:
        with pytest.raises(ModelError) as error:
            Engine(model).predict()(torch.randn(30, 4))
        assert str(error.value).startswith(f"model {type(model).__name__}")
        for snippet in snippets:
            assert snippet in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_parameter_and_a_remedy(dtype):
    with pytest.raises(ModelError, match=r"model Linear: parameter 'weight' is torch\.b?float16.*model\.float\(\)"):
        Engine(nn.Linear(2, 2).to(dtype))


def test_parameters_that_hold_nan_and_things_that_are_no_model_are_refused():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="parameter 'weight' holds NaN"):
        Engine(model)
    with pytest.raises(ModelError, match="no floating-point parameters"):
        Engine(nn.ReLU())


def test_what_is_no_module_is_refused_before_anything_runs_and_told_what_to_pass():
    net = nn.Linear(2, 2)
    goal = ErrorRate(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), target=0.1)
    cases = [
        (lambda x: x, "got a function. Wrap a plain function in a module."),
        (None, "got a NoneType"),
        (nn.Linear, "got the class Linear. Pass an instance of it"),
        (net.state_dict(), "got weights alone. Load them into their module"),
        ("net.pt", r"got 'net.pt'. Load the file, as by torch.load"),
        (SimpleNamespace(module_=net), "got a SimpleNamespace. Pass its module_."),
        (SimpleNamespace(predict=abs), "got a SimpleNamespace. Of an estimator of another library"),
    ]
    for given, said in cases:
        for call in (
            Engine,
            lambda model: solve_repair(model, goal),
            lambda model: solve_repair(model, goal, method="swarm"),
        ):
            with pytest.raises(ModelError, match=r"model: expected a torch\.nn\.Module") as error:
                call(given)
            assert said in str(error.value)


def test_a_model_that_cannot_be_copied_says_so():
    model = nn.Linear(2, 2)
    model.history = model.weight * 2  # a tensor with a gradient history
    with pytest.raises(ModelError, match="modules cannot be copied"):
        Engine(model)


def test_weights_that_are_not_in_the_model(small_net):
    for indices, snippet in [
        ({"9.weight": torch.arange(2)}, "the model has no parameter '9.weight'. Its parameters: 0.weight"),
        ({"4.weight": torch.tensor([18])}, "positions in '4.weight' must be a vector of numbers 0 to 17"),
        ({"4.weight": torch.tensor([-1])}, "0 to 17"),
        ({"4.weight": torch.tensor([[1]])}, "must be a vector"),
        ({"4.weight": torch.tensor([2, 2])}, "given twice"),
    ]:
        with pytest.raises(ModelError) as error:
            Engine(small_net, indices)
        assert snippet in str(error.value)
