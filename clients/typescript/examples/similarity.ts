/**
 * Embeds sentences and prints how similar each pair is, most similar first.
 *
 *     npx tsx examples/similarity.ts --model all-minilm-l6-v2 "A cat sleeps." "A kitten naps." "Stocks fell."
 */

import { parseArgs } from "node:util";
import { AimassError, EmbeddingClient, requireVector } from "../src/index.js";

const SENTENCES = [
  "The cat sleeps on the sofa.",
  "A kitten is napping on the couch.",
  "The central bank raised interest rates.",
];

const { values, positionals } = parseArgs({
  options: {
    address: { type: "string", default: "localhost:50052" },
    model: { type: "string", default: "all-minilm-l6-v2" },
  },
  allowPositionals: true,
});
const texts = positionals.length > 0 ? positionals : SENTENCES;

/** Cosine of vectors that the server has scaled to length 1. */
function cosine(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, x, index) => sum + x * (b[index] ?? 0), 0);
}

using client = new EmbeddingClient({ address: values.address });
try {
  const { items } = await client.embed({ model: values.model, texts, options: { normalize: true } });
  const embedded = items.map((item, index) => ({ text: texts[index], vector: requireVector(item) }));
  const pairs = embedded.flatMap((a, index) =>
    embedded.slice(index + 1).map((b) => ({ a: a.text, b: b.text, similarity: cosine(a.vector, b.vector) })),
  );
  for (const { a, b, similarity } of pairs.sort((x, y) => y.similarity - x.similarity)) {
    console.log(`${similarity.toFixed(4)}  ${a}  |  ${b}`);
  }
} catch (error) {
  if (!(error instanceof AimassError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
