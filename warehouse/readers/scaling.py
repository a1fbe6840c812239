"""The accounts of a scaling study: parameters N with and without embeddings, tokens D, and compute C = 6 N D.

With a vocabulary of ten thousand and a model of nine million parameters the embeddings are a large share of N, so a
study states both. C = 6 N D is the convention of Kaplan et al. 2020. D unique is a budget's `tokens` in the manifest; D
seen is that number times the epochs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Weights of a decoder-only transformer, without biases, norms and positions.

    Attributes:
        non_embedding: of its layers: attention 4 d² and a feed-forward of four times the width, 8 d², each.
        embedding: of the token table, and of the output matrix where that is another.
    """

    non_embedding: int
    embedding: int

    @property
    def total(self) -> int:
        """N with embeddings."""
        return self.non_embedding + self.embedding


def parameters(d_model: int, layers: int, vocabulary: int, tied: bool = True) -> Parameters:
    """N of a transformer of that width and depth.

    Args:
        tied: the output matrix is the token table.

    >>> parameters(256, 6, 10_000)
    Parameters(non_embedding=4718592, embedding=2560000)
    """
    return Parameters(12 * layers * d_model**2, (1 if tied else 2) * vocabulary * d_model)


def flops(n: int, d: int) -> int:
    """Training compute C = 6 N D (Kaplan et al. 2020): 2 N D forward, 4 N D backward, attention scores left out.

    Args:
        n: parameters; a study says with or without embeddings.
        d: tokens seen, epochs included.

    >>> flops(4_718_592, 1_000_000)
    28311552000000
    """
    return 6 * n * d
