"""Text of a prompt as words on shaded ground; tokens that nobody described, as cells."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from lookm.picture.shares import Shares
from lookm.picture.veil import FAINT, INK, LINED, PAPER, STRIPE, VEIL, Colour, veil
from lookm.positions import Positions

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAX_WORDS = 3000  # that are drawn; no one reads more in a picture
CELL = 7
READABLE = 0.5  # of the veil behind a word
VISIBLE = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Word:
    """A token to be drawn, with what it shows; None begins what follows an image."""

    token: int
    text: str


def words_of(positions: Positions) -> Iterator[Word | str]:
    """Tokens and, between them, the images' names, in the prompt's order."""
    pieces: list[tuple[int, Iterator[Word | str]]] = [
        (run.first_token, _words(run.first_token, run.tokens)) for run in positions.text
    ]
    pieces += [
        (image.first_token, iter([f"[image {n}: {image.num_tokens} tokens]"]))
        for n, image in enumerate(positions.images, start=1)
    ]
    for _, words in sorted(pieces, key=lambda piece: piece[0]):
        yield from words


def _words(first: int, texts: tuple[str, ...]) -> Iterator[Word | str]:
    for n, text in enumerate(texts):
        yield Word(first + n, "".join(VISIBLE.get(letter, letter) for letter in text))


def draw_words(positions: Positions, shares: Shares, font: Font, width: int) -> Image.Image:
    """The prompt's text, `width` pixels wide."""
    line = int(font.getbbox("Ayg|")[3]) + 9
    placed: list[tuple[int, int, int, Word | str]] = []
    x = y = 0
    for n, word in enumerate(words_of(positions)):
        if n == MAX_WORDS:
            word = f"... and {positions.num_tokens - MAX_WORDS:,} tokens more"
        shown = word.text if isinstance(word, Word) else f" {word} "
        length = max(5, int(font.getlength(shown)) + 4)
        if x + length > width and x:
            x, y = 0, y + line
        placed.append((x, y, min(length, width), word))
        x += length + (1 if isinstance(word, Word) else 6)
        if n == MAX_WORDS:
            break
    made = Image.new("RGB", (width, y + line), PAPER)
    draw = ImageDraw.Draw(made)
    for x, y, length, word in placed:
        if isinstance(word, str):
            draw.text((x + 2, y + 2), f" {word} ", fill=LINED, font=font)
            continue
        right, bottom = x + length - 1, y + line - 3
        draw.rectangle([x, y, right, bottom], fill=_ground(shares, word.token))
        if shares.merged_T[word.token] > 0.5:
            draw.rectangle([x, bottom - 1, right, bottom], fill=STRIPE)
        draw.text((x + 2, y + 2), word.text, fill=INK, font=font)
    return made


def draw_cells(shares: Shares, width: int) -> Image.Image:
    """All tokens as cells in reading order, where it is not known what they are."""
    columns = width // CELL
    rows = -(-len(shares.kept_T) // columns)
    made = Image.new("RGB", (width, rows * CELL), PAPER)
    draw = ImageDraw.Draw(made)
    for token in range(len(shares.kept_T)):
        row, column = divmod(token, columns)
        x, y = column * CELL, row * CELL
        merged = shares.merged_T[token] > 0.5
        draw.rectangle(
            [x, y, x + CELL - 2, y + CELL - 2],
            fill=_ground(shares, token, most=1),
            outline=STRIPE if merged else LINED,
        )
    return made


def _ground(shares: Shares, token: int, most: float = READABLE) -> Colour:
    """Paper under as much of the veil."""
    known = token >= shares.num_unknown
    opacity = most * veil(float(shares.kept_T[token])) if known else FAINT
    red, green, blue = (
        round((1 - opacity) * below + opacity * above)
        for below, above in zip(PAPER, VEIL, strict=True)
    )
    return red, green, blue
