r"""
BOIL
################################################
Reference:
    Oh et al. "BOIL: Towards Representation Change for Few-shot Learning." ICLR 2021.
    arXiv:2008.08882
"""

from recbole_meta.model.meta.maml import MAML


class BOIL(MAML):
    r"""MAML whose inner loop moves all layers but the last: the body, where ANIL moves the head.

    .. math::
        \theta' = \theta - \alpha \nabla_\theta L_{support}(\theta, w, b), \qquad
        score = h_{\theta'}(x) w + b

    The head (w, b) learns in the outer loop only, and so do the embeddings, which the paper's body
    of convolutions has not.
    """

    def adapts(self, name: str) -> bool:
        last = len(self.settings.hidden_size)
        return name not in (f"weight_{last}", f"bias_{last}")
