// Which words of several answers differ: the longest common subsequence, word by word.

const MOST_CELLS = 4_000_000; // beyond: what lies between a common beginning and end differs

/** For each answer, its pieces in order, `{text, differs}`: the first is compared with all others,
 * the others with the first. */
export function differences(answers) {
  const split = answers.map((answer) => answer.match(/\s+|\S+/g) ?? []);
  const words = split.map((pieces) => pieces.filter((piece) => piece.trim()));
  const differs = words.map((own) => own.map(() => false));
  for (let other = 1; other < words.length; other++) {
    const [inFirst, inOther] = common(words[0], words[other]);
    inFirst.forEach((same, at) => (differs[0][at] ||= !same));
    inOther.forEach((same, at) => (differs[other][at] = !same));
  }
  return split.map((pieces, which) => {
    let at = 0;
    return pieces.map((text) => ({ text, differs: text.trim() ? differs[which][at++] : false }));
  });
}

/** For each word of `a` and of `b`, whether it is in their longest common subsequence. */
function common(a, b) {
  const inA = a.map(() => false);
  const inB = b.map(() => false);
  let begin = 0;
  while (begin < a.length && begin < b.length && a[begin] === b[begin]) inA[begin] = inB[begin++] = true;
  let [endA, endB] = [a.length, b.length];
  while (endA > begin && endB > begin && a[endA - 1] === b[endB - 1]) inA[--endA] = inB[--endB] = true;
  const [rows, columns] = [endA - begin, endB - begin];
  if (rows * columns > MOST_CELLS) return [inA, inB];

  const width = columns + 1;
  const longest = new Uint16Array((rows + 1) * width); // of what is left from (i, j) on
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      longest[i * width + j] =
        a[begin + i] === b[begin + j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (a[begin + i] === b[begin + j]) inA[begin + i++] = inB[begin + j++] = true;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}
