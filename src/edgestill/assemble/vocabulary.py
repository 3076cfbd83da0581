"""The tokens that a recipe's training texts use. N ids."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgestill.data.texts import Texts
from edgestill.errors import UserError
from edgestill.models import Model, TextInput
from edgestill.recipe import Recipe
from edgestill.students.vocabulary import KEY, Vocabulary, named_ids, smaller_vocabulary
from edgestill.tasks.tokens import conversations, packed

UNCUT = 2**31 - 1
"""A length that cuts no text: where one is cut must not depend on which tokens are there."""


def vocabulary_of(recipe: Recipe, teacher: Model, texts: Texts) -> Vocabulary:
    """The tokens of a teacher's that these texts use, with which they are written as before. UserError where they are
    not."""
    expected = teacher.input
    assert isinstance(expected, TextInput)
    ids = _ids(recipe, texts, expected)
    vocabulary = smaller_vocabulary(expected.tokenizer, np.unique(ids).tolist(), named_ids(teacher.module))
    own = _ids(recipe, texts, expected.with_tokenizer(vocabulary.tokenizer))
    if not np.array_equal(vocabulary.kept[own], ids):
        raise UserError(
            f"{KEY}: {type(expected.tokenizer).__name__} with {len(vocabulary.kept):,} of its tokens writes the "
            "training texts otherwise: keep all"
        )
    return vocabulary


def _ids(recipe: Recipe, texts: Texts, expected: TextInput) -> NDArray[np.int32]:
    """int32 [N]: all texts as the models take them, but uncut."""
    uncut = replace(expected, length=UNCUT)
    if recipe.task == "language-modeling":
        return packed(texts, uncut).ids
    if recipe.task == "instruction":
        return conversations(texts, uncut).ids
    return uncut.encode(texts.texts, texts.pairs).ids
