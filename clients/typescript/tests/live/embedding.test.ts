/** The client against a real encoder service. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { EmbeddingClient, requireVector, VectorDtype } from "../../src/index.js";
import { ADDRESS, MODEL } from "./service.js";

const client = new EmbeddingClient({ address: ADDRESS });
const TEXTS = ["The cat sleeps on the sofa.", "A kitten naps on the couch. 🐈", "金利が上がった。"];

async function vectors(dtype: VectorDtype): Promise<Float32Array[]> {
  const answer = await client.embed({ model: MODEL, texts: TEXTS, options: { dtype, normalize: true } });
  assert.equal(answer.dtype, dtype);
  assert.equal(answer.items.length, TEXTS.length);
  return answer.items.map(requireVector);
}

function cosine(a: Float32Array, b: Float32Array): number {
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, v, index) => sum + v * (y[index] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

test("a normalised vector has length 1", async () => {
  for (const vector of await vectors(VectorDtype.FLOAT32))
    assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-5);
});

/** How far each packing may turn a vector: half precision and 8 bits round, one bit keeps signs only. */
const MIN_COSINE = [
  [VectorDtype.FLOAT16, 0.999999],
  [VectorDtype.INT8, 0.999],
  [VectorDtype.BINARY, 0.7],
] as const;

for (const [dtype, minCosine] of MIN_COSINE) {
  test(`${VectorDtype[dtype]} vectors point where FLOAT32 vectors do`, async () => {
    const exact = await vectors(VectorDtype.FLOAT32);
    for (const [index, vector] of (await vectors(dtype)).entries()) {
      const similarity = cosine(vector, exact[index] ?? new Float32Array());
      assert.ok(similarity >= minCosine, `${similarity}`);
    }
  });
}

test("one empty text fails its own item", async () => {
  const { items } = await client.embed({ model: MODEL, texts: ["good", ""] });
  assert.equal(items[0]?.failure, undefined);
  assert.equal(items[1]?.failure?.reason, "INVALID_FIELD");
});

test("a stream answers with the vectors of the one call", async () => {
  const streamed: Float32Array[] = [];
  for await (const item of client.embedStream({ model: MODEL, options: { normalize: true } }, TEXTS)) {
    streamed.push(requireVector(item));
  }
  const exact = await vectors(VectorDtype.FLOAT32);
  assert.equal(streamed.length, exact.length);
  for (const [index, vector] of streamed.entries()) {
    assert.ok(cosine(vector, exact[index] ?? new Float32Array()) > 0.99999);
  }
});

test("an unknown model is MODEL_NOT_FOUND, in a call and in a stream", async () => {
  await assert.rejects(client.embed({ model: "no-such-model", texts: TEXTS }), { reason: "MODEL_NOT_FOUND" });
  await assert.rejects(client.embedStream({ model: "no-such-model" }, TEXTS).next(), {
    reason: "MODEL_NOT_FOUND",
  });
});
