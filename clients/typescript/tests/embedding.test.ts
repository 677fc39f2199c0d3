import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { ServiceImpl } from "@connectrpc/connect";
import { ErrorReason } from "../src/gen/aimass/common/v1/error_pb.js";
import { EmbeddingService } from "../src/gen/aimass/embedding/v1/embedding_service_pb.js";
import { EmbeddingClient, type EmbedItem, requireVector, VectorDtype } from "../src/index.js";
import { serve } from "./scripted-server.js";

async function clientOf(
  t: TestContext,
  script: Partial<ServiceImpl<typeof EmbeddingService>>,
): Promise<EmbeddingClient> {
  const server = await serve((router) => router.service(EmbeddingService, script));
  const client = new EmbeddingClient({ address: server.address });
  t.after(async () => {
    client.close();
    await server.close();
  });
  return client;
}

const FLOAT32 = new Uint8Array(new Float32Array([0.5, -2]).buffer);
const REFUSED = {
  reason: ErrorReason.INVALID_FIELD,
  message: "texts[1]: expected text, got none",
  violations: [{ field: "texts[1]", description: "expected text, got none" }],
};

test("one bad text fails its own item", async (t) => {
  const client = await clientOf(t, {
    embed: ({ texts, model, options }) => ({
      results: texts.map((text) => ({
        result: text
          ? { case: "embedding", value: { vector: FLOAT32, tokens: 4, truncatedTokens: 1 } }
          : { case: "error", value: REFUSED },
      })),
      dimensions: options?.dimensions ?? 0,
      dtype: VectorDtype.FLOAT32,
      model,
      usage: { inputTokens: 8 },
    }),
  });
  const answer = await client.embed({ model: "mini", texts: ["a", ""], options: { dimensions: 2 } });
  assert.deepEqual([answer.model, answer.dimensions, answer.usage?.inputTokens], ["mini", 2, 8]);
  const [good, bad] = answer.items as [EmbedItem, EmbedItem];
  assert.deepEqual(requireVector(good), Float32Array.of(0.5, -2));
  assert.ok(!good.failure);
  assert.deepEqual([good.tokens, good.truncatedTokens], [4, 1]);
  assert.deepEqual(bad.failure, { ...REFUSED, reason: "INVALID_FIELD" });
  assert.throws(() => requireVector(bad), { name: "AimassError", reason: "INVALID_FIELD" });
});

test("a stream answers texts as they arrive, in their order", async (t) => {
  const client = await clientOf(t, {
    async *embedStream(requests) {
      let index = 0n;
      for await (const { request } of requests) {
        if (request.case !== "text") continue;
        const vector = new Uint8Array(new Float32Array([request.value.length]).buffer);
        const result = { result: { case: "embedding" as const, value: { vector } } };
        yield { index, result, dimensions: 1, dtype: VectorDtype.FLOAT32 };
        index += 1n;
      }
    },
  });
  const answered: number[] = [];
  async function* texts() {
    for (const [place, text] of ["a", "bb", "ccc"].entries()) {
      while (answered.length < place) await sleep(1); // each text waits for the answer to the one before
      yield text;
    }
  }
  for await (const item of client.embedStream({ model: "mini" }, texts())) {
    answered.push(requireVector(item)[0] ?? 0);
  }
  assert.deepEqual(answered, [1, 2, 3]);
});

test("leaving a stream early cancels it at the server and closes the source of texts", async (t) => {
  let markCancelled: () => void;
  const cancelled = new Promise<void>((resolve) => {
    markCancelled = resolve;
  });
  const client = await clientOf(t, {
    async *embedStream(requests, context) {
      context.signal.addEventListener("abort", () => markCancelled());
      for await (const { request } of requests) {
        if (request.case !== "text") continue;
        const result = { result: { case: "embedding" as const, value: { vector: FLOAT32 } } };
        yield { result, dimensions: 2, dtype: VectorDtype.FLOAT32 };
      }
    },
  });
  let isSourceClosed = false;
  async function* texts() {
    try {
      for (;;) {
        yield "again";
        await sleep(1);
      }
    } finally {
      isSourceClosed = true;
    }
  }
  for await (const _ of client.embedStream({ model: "mini" }, texts())) break;
  await cancelled;
  while (!isSourceClosed) await sleep(1);
});

test("an error in the source of texts fails the stream", async (t) => {
  const client = await clientOf(t, {
    async *embedStream(requests) {
      for await (const _ of requests) yield {};
    },
  });
  async function* texts() {
    yield "a";
    throw new Error("the disk is gone");
  }
  const read = async () => {
    for await (const _ of client.embedStream({ model: "mini" }, texts()));
  };
  await assert.rejects(read(), { name: "AimassError", message: /the disk is gone/ });
});
