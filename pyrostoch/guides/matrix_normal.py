"""A normal guide with a covariance of rows and one of columns for each weight matrix."""

from __future__ import annotations

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyrostoch import distributions
from pyrostoch.guides.joint import check_memory, positive_tril, raw_tril, refuse_constants
from pyrostoch.guides.normal_start import NormalStart
from pyrostoch.sites import Site

__all__ = ["MatrixNormal"]


class MatrixNormal(NormalStart):
    r"""Each weight matrix is $W = M + A E B^\top$: a covariance $U = A A^\top$ of rows and $V = B B^\top$ of columns.

    Rows are outputs, columns are inputs; the entries of a convolution's kernel count as inputs. A weight of `out` rows
    and `in` columns has out^2 + in^2 numbers for its covariance, of which about half are used. Parameters with one axis
    or none, such as biases, have independent normal entries.

    The output of a linear layer is normal, so that local reparameterization is exact and needs three products in place
    of two; convolutions that are neither transposed nor grouped are treated in the same way, with the positions taken
    as independent. The KL divergence to a normal prior is exact.

    Args:
        model: A `BayesianModel`.
        init_loc: Initial means: a number, a function of the site, or a trained guide; by default the network's values.
        init_scale: Initial standard deviations: a number, a function of the site, or a trained guide, whose are met up
            to what a scale of the row times one of the column can.
        sites: Names of the sites covered; all by default.

    Raises:
        ValueError: A covariance does not fit into memory, or some entries of a site are constant.

    References:
        Louizos, Welling, "Structured and efficient variational deep learning with matrix Gaussian posteriors", 2016,
        with covariances that are diagonal.

    Example:
        >>> import torch, pyrostoch as ps
        >>> model = ps.BayesianModel(torch.nn.Linear(3, 2), prior=ps.priors.Normal(),
        ...                          likelihood=ps.likelihoods.Gaussian(0.1), num_data=10)
        >>> guide = MatrixNormal(model, init_scale=0.1)
        >>> {name: value.shape for name, value in guide.parameters_for("weight").items()}
        {'columns': torch.Size([3, 3]), 'loc': torch.Size([2, 3]), 'rows': torch.Size([2, 2])}
    """

    def initial_parameters(self, site: Site) -> dict[str, Tensor]:
        """`loc` in the weight's shape, `rows`, (out, out), and `columns`, (in, in); `loc` and `log_scale` of a bias."""
        start = self.normal_start(site)
        if site.init.dim() < 2:
            return start
        refuse_constants(site, "MatrixNormal")
        outputs = site.init.shape[site.out_axis]
        inputs = site.init.numel() // outputs
        check_memory(site, outputs**2 + inputs**2, "MatrixNormal")
        # The products of a scale of the row and one of the column that are nearest to the scales, in logarithms.
        log_scale = start["log_scale"].movedim(site.out_axis, 0).reshape(outputs, inputs)
        columns = log_scale.mean(0) - log_scale.mean()
        return {
            "loc": start["loc"],
            "rows": raw_tril(log_scale.mean(1).exp()),
            "columns": raw_tril(columns.exp()),
        }

    def distribution(self, site: str, **parameters: Tensor) -> Distribution:
        """The matrix normal distribution of the site, an event of the weight's shape; N(loc, scale^2) for a bias."""
        if "rows" not in parameters:
            return dist.Normal(parameters["loc"], parameters["log_scale"].exp())
        rows, columns = positive_tril(parameters["rows"]), positive_tril(parameters["columns"])
        return distributions.MatrixNormal(parameters["loc"], rows, columns, out_axis=self._out_axes[site])
