import pytest
import torch

from metaseg.meta.conjugate_gradient import Outcome, conjugate_gradient


def spectrum(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)
    )
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return matrix, torch.randn(len(eigenvalues), generator=generator, dtype=torch.float64)


def test_solves_exactly_in_as_many_steps_as_there_are_distinct_eigenvalues():
    matrix, b = spectrum([1.0, 1.0, 2.0, 2.0, 5.0])
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=3, tolerance=0.0)
    torch.testing.assert_close(solution.value, torch.linalg.solve(matrix, b))
    assert solution.iterations == 3


def test_the_first_iterate_is_the_best_multiple_of_b():
    matrix, b = spectrum([1.0, 2.0, 3.0])
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=1, tolerance=0.0)
    torch.testing.assert_close(solution.value, b * (b @ b) / (b @ matrix @ b))


def test_the_reported_residual_is_the_true_one():
    matrix, b = spectrum([1.0, 3.0, 7.0, 20.0, 50.0])
    for steps in (1, 2, 3, 4):
        solution = conjugate_gradient(lambda v: matrix @ v, b, steps=steps, tolerance=0.0)
        true = ((b - matrix @ solution.value).norm() / b.norm()).item()
        assert solution.residual == pytest.approx(true, rel=1e-9)


def test_stops_at_the_tolerance():
    matrix, b = spectrum([1.0, 1.01, 1.02, 1.03])
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=50, tolerance=0.02)
    assert solution.outcome is Outcome.CONVERGED
    assert solution.iterations == 1
    assert solution.residual <= 0.02


def test_an_exact_solution_ends_the_solve_without_a_tolerance():
    solution = conjugate_gradient(lambda v: v, torch.ones(3), steps=5, tolerance=0.0)
    assert (solution.outcome, solution.iterations, solution.residual) == (Outcome.CONVERGED, 1, 0)


def test_an_iterate_whose_residual_grew_is_not_returned():
    diagonal, b = torch.tensor([[1.0, 2.0, 100.0], [1.0, 1.0, 0.001]], dtype=torch.float64)
    one, two = (conjugate_gradient(lambda v: diagonal * v, b, steps=steps, tolerance=0.0) for steps in (1, 2))
    assert two.iterations == 2  # whose own residual is 1.41
    assert two.residual == one.residual == pytest.approx(0.33654, rel=1e-4)
    assert torch.equal(two.value, one.value)


def test_the_smallest_curvature_is_that_of_all_directions():
    diagonal, b = torch.tensor([[1.0, 10.0], [1.0, 0.1]], dtype=torch.float64)
    solution = conjugate_gradient(lambda v: diagonal * v, b, steps=2, tolerance=0.0)
    assert solution.iterations == 2
    # That of the first, b: (1 + 10 · 0.01) / (1 + 0.01); that of the second is near 10.
    assert solution.smallest_curvature == pytest.approx(1.1 / 1.01)


def test_negative_curvature_in_the_first_direction_returns_b_with_its_true_residual():
    matrix = -torch.eye(3, dtype=torch.float64)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=5, tolerance=0.0)
    assert solution.outcome is Outcome.NEGATIVE_CURVATURE
    torch.testing.assert_close(solution.value, b)
    assert solution.residual == pytest.approx(2.0)
    assert solution.smallest_curvature == pytest.approx(-1.0)
    assert solution.iterations == 1


def test_negative_curvature_met_later_keeps_the_iterate_before_it():
    matrix, b = spectrum([-0.5, 1.0, 1.5, 2.0])
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=10, tolerance=0.0)
    assert solution.outcome is Outcome.NEGATIVE_CURVATURE
    assert torch.isfinite(solution.value).all()
    true = ((b - matrix @ solution.value).norm() / b.norm()).item()
    assert solution.residual == pytest.approx(true)


def test_a_direction_without_curvature_ends_the_solve_before_it():
    b = torch.tensor([1.0, 0.0])
    solution = conjugate_gradient(lambda v: v * torch.tensor([0.0, 1.0]), b, steps=3, tolerance=0.0)
    assert solution.outcome is Outcome.NEGATIVE_CURVATURE
    assert (solution.residual, solution.smallest_curvature, solution.iterations) == (1, 0, 1)
    assert torch.equal(solution.value, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_products_that_are_not_finite_end_the_solve(bad):
    b = torch.ones(3)
    solution = conjugate_gradient(lambda v: v * bad, b, steps=5, tolerance=0.0)
    assert solution.outcome is Outcome.NOT_FINITE
    torch.testing.assert_close(solution.value, b)
    assert solution.residual == float("inf")


def test_zero_right_hand_side():
    solution = conjugate_gradient(lambda v: v, torch.zeros(3), steps=5, tolerance=0.0)
    assert solution.outcome is Outcome.ZERO_RIGHT_HAND_SIDE
    assert solution.iterations == 0


def test_exhausted_steps_are_reported():
    matrix, b = spectrum([1.0, 10.0, 100.0, 1000.0])
    assert conjugate_gradient(lambda v: matrix @ v, b, steps=2, tolerance=1e-9).outcome is Outcome.STEPS_SPENT


@pytest.mark.parametrize(("steps", "tolerance"), [(0, 0.1), (1, -0.1), (1, float("nan"))])
def test_settings_out_of_range_are_refused(steps, tolerance):
    with pytest.raises(ValueError, match="steps >= 1 and tolerance >= 0"):
        conjugate_gradient(lambda v: v, torch.ones(2), steps=steps, tolerance=tolerance)


def test_stops_at_the_earliest_product_at_which_a_krylov_method_can():
    matrix, b = spectrum([1.0, 1.2, 2.0, 9.0, 40.0, 300.0])
    for tolerance in (0.5, 0.2, 0.05, 1e-3):
        solution = conjugate_gradient(lambda v: matrix @ v, b, steps=6, tolerance=tolerance)
        krylov = torch.stack([torch.linalg.matrix_power(matrix, n) @ b for n in range(6)], dim=1)
        basis, _ = torch.linalg.qr(krylov / krylov.norm(dim=0))
        residuals = []
        for count in range(1, 7):
            images = matrix @ basis[:, :count]
            residuals.append((images @ torch.linalg.lstsq(images, b).solution - b).norm() / b.norm())
        earliest = next(count for count, residual in enumerate(residuals, start=1) if residual <= tolerance)
        assert solution.iterations == earliest
        true = ((b - matrix @ solution.value).norm() / b.norm()).item()
        assert solution.residual == pytest.approx(true, rel=1e-6)
        assert true <= tolerance


def test_a_residual_that_is_not_finite_ends_with_the_best_so_far():
    """A product may overflow beside what matters for the curvature."""
    b = torch.tensor([1.0, 0.0], dtype=torch.float64)
    solution = conjugate_gradient(lambda v: torch.stack([2 * v[0], 1e200 * v[0]]), b, steps=3, tolerance=0.0)
    assert solution.outcome is Outcome.NOT_FINITE
    assert torch.isfinite(solution.value).all()
