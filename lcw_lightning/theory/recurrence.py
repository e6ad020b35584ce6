r"""How gradients change from step to step of a recurrent network, with plain and with zero-sum recurrent weights."""

from typing import NamedTuple

from lcw_lightning.theory.gaussian import Function, standard_deviation
from lcw_lightning.theory.integrated import gaussian_moments
from lcw_lightning.theory.variance_maps import VarianceMap

__all__ = ["Recurrence", "recurrence"]

DECADES = 8
"""How far above the variance of the inputs' part one is looked for."""


class Recurrence(NamedTuple):
    """The stationary state of a wide recurrent network.

    Attributes:
        q: Variance of preactivations, over units and steps.
        shift: The part of q that comes from the activations' mean and is constant over steps: activation shift.
        chi: The factor of one step on the mean square of gradients; over T steps it is ``chi ** T``.
    """

    q: float
    shift: float
    chi: float


def recurrence(activation: Function, sigma_w: float, input_std: float, zero_sum: bool = False) -> Recurrence:
    r"""Return the variance and the gradients' factor that a wide recurrent network settles at.

    The paper (Kutsuna) leaves recurrent networks to future work; this project derived the following.

    *Forward.* Let :math:`z_t = W \phi(z_{t-1}) + u_t`, with n units, weights drawn once from
    :math:`\mathcal{N}(0, \sigma_w^2 / n)`, and inputs' parts :math:`u_t` of standard deviation ``input_std``. Let the
    activations have mean :math:`\mu` and variance v over units. As :math:`\phi(z) = \mu \mathbf{1} + d`,

    .. math:: W \phi(z) = \mu W \mathbf{1} + W d, \qquad
              V[\mu W \mathbf{1}] = \sigma_w^2 \mu^2, \quad V[W d] = \sigma_w^2 v.

    The first term is the activation shift: the same vector at each step, so a constant of each unit that says nothing
    of the inputs. Rows that sum to zero have :math:`W \mathbf{1} = 0`. So preactivations are
    :math:`\mathcal{N}(0, q)`, and q settles, from :math:`h_0 = 0` upwards, at the smallest solution of

    .. math:: q = \sigma_w^2 E[\phi^2] + \sigma_u^2 \;\text{(plain)}, \qquad
              q = \sigma_w^2 \mathrm{Var}[\phi] + \sigma_u^2 \;\text{(zero-sum)},

    with :math:`\phi` at :math:`\mathcal{N}(0, q)`: the fixed point of
    :class:`~lcw_lightning.theory.variance_maps.VarianceMap`, with the inputs in place of biases.

    *Backward.* The gradient runs through :math:`J_t = \mathrm{diag}(\phi'(z_t)) W`. For T far below n the steps'
    factors multiply in the wide limit, although all have the same W:

    .. math:: \frac1n E \|J_T \cdots J_1\|_F^2 = \chi^T, \qquad \chi = \sigma_w^2 E[\phi'(z)^2].

    A zero-sum W loses one direction of n, so :math:`\chi` has the same form. Norms of gradients change by
    :math:`\chi^{T/2}`: they stay within a factor of ten over T steps where :math:`|\log_{10} \chi| \le 2 / T`.

    *Condition.* Let :math:`\rho` be the share of the recurrent part in q, as in minibatch initialization, which sets
    :math:`\sqrt q` and :math:`\rho`. Then :math:`\sigma_w^2 = \rho q / E[\phi^2]`, or
    :math:`\rho q / \mathrm{Var}[\phi]` for zero-sum weights, and :math:`\chi = 1` asks for

    .. math:: \rho = \frac{E[\phi^2]}{q E[\phi'^2]} \;\text{(plain)}, \qquad
              \rho = \frac{\mathrm{Var}[\phi]}{q E[\phi'^2]} = \frac{\phi_{fw}}{\phi_{bw}} \;\text{(zero-sum)}.

    A share is at most 1. The second ratio is so at every q, by Poincare's inequality for activations without jumps:
    with zero-sum weights a gain exists for which gradients neither vanish nor explode. The first is not, where the
    mean is large: for the sigmoid it is 6.5 at q = 1 and 3.0 at q = 4, so that even without inputs plain weights have
    :math:`\chi \le 0.15` and 0.33. The shift grows with the gain and carries z to where :math:`\phi'` is small; only
    from q = 46 on, where most units are near 0 or 1, is the ratio at most 1. With ReLU both have
    :math:`\chi = \sigma_w^2 / 2`, but with inputs plain weights have a fixed point below :math:`\chi = 1` alone,
    zero-sum weights up to :math:`\chi = 1.47`.

    *Where nothing is gained.* For odd activations, as tanh, :math:`\mu = 0`: there is no mean to remove, plain and
    zero-sum weights have the same q and :math:`\chi`. A bias that all units share moves the mean: give
    :math:`z \mapsto \phi(z + b)` as the activation.

    Args:
        activation: The function phi, elementwise and deterministic.
        sigma_w: The gain: standard deviation of the recurrent weights, times the root of n.
        input_std: Standard deviation of the inputs' part of preactivations, over units and steps.
        zero_sum: Whether each row of the recurrent weights sums to zero.

    Raises:
        ValueError: If no variance is settled at, the input's standard deviation is not positive and finite, or the
            activation cannot be integrated.

    Example:
        >>> import torch
        >>> q, shift, chi = recurrence(torch.relu, sigma_w=2**0.5, input_std=1.0, zero_sum=True)
        >>> round(q, 9), shift, round(chi, 9)  # q = (1 - 1 / pi) q + 1
        (3.141592654, 0.0, 1.0)
    """
    variance_map = VarianceMap(activation, sigma_w, input_std, zero_sum)
    lowest = standard_deviation(input_std**2) ** 2
    spans = (lowest * 10.0**decade for decade in range(DECADES))
    settled = next((found[0] for low in spans if (found := variance_map.fixed_points(low, 10 * low))), None)
    if settled is None:
        raise ValueError(
            f"A recurrent network with sigma_w = {sigma_w} and input_std = {input_std} settles at no variance below "
            f"{lowest * 10.0**DECADES:.0e}: take a smaller sigma_w{'' if zero_sum else ', or zero-sum weights'}."
        )
    shift = 0.0 if zero_sum else (sigma_w * gaussian_moments(activation).mean(settled)) ** 2
    return Recurrence(settled, shift, variance_map.chi_1(settled))
