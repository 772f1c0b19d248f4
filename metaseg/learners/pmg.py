"""PMG after Xiao et al. 2021, "A prior-mask-guided few-shot learning for skin lesion segmentation" (Computing 105:717).

A re-implementation from the abstract: neither code nor text is public.

Established by the abstract: (1) the region that support and query share becomes a prior mask that excludes irrelevant
background; (2) it is concatenated with the features, and an inference module predicts the query's mask; (3) the
structure is symmetric, so the network is trained again with support and query reversed.

Assumed, after the nearest public mechanisms:

- The prior mask is that of PFENet [Tian et al. 2020, arXiv 2008.01449]: cosine similarity of high-level features,
  without parameters. Gradients pass through it, since otherwise the last block of a randomly initialised encoder would
  keep its random weights; PFENet's encoder is pre-trained and frozen.
- It is concatenated with the query's reduced mid-level features and, at every position, with the support's masked
  average prototype, as in PFENet.
- The inference module is a few residual convolutions with batch norm and upsampling in between.
- Reversing the roles is PANet's alignment [Wang et al. 2019]: the predicted query masks, cut at p > 0.5,
  serve as annotation to segment the support images; both losses have the same weight.
- The encoder is VGG16 with all layers trained; the loss is the run's.

The authors train and test on skin lesions (ISIC-2017, ISIC-2019, PH²); here training uses the pair's pools.
"""

from metaseg.learners.metric import MetricLearner
from metaseg.networks.pmg import PMGNetwork


class PMG(MetricLearner):
    """Prior-mask-guided segmentation; arguments as ``MetricLearner``."""

    network_class = PMGNetwork
