import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { GenerationService } from "../src/gen/aimass/generation/v1/generation_service_pb.js";
import { AimassError, type ConnectionOptions, FinishReason, GenerationClient } from "../src/index.js";
import { serve } from "./scripted-server.js";

type Script = Partial<ServiceImpl<typeof GenerationService>>;

async function clientOf(
  t: TestContext,
  script: Script,
  options: Partial<ConnectionOptions> = {},
): Promise<GenerationClient> {
  const server = await serve((router) => router.service(GenerationService, script));
  const client = new GenerationClient({ address: server.address, ...options });
  t.after(async () => {
    client.close();
    await server.close();
  });
  return client;
}

const delta = (text: string) => ({ event: { case: "delta" as const, value: { text } } });
const PROMPT_INFO = { event: { case: "promptInfo" as const, value: { model: "tiny", promptTokens: 3 } } };
const FINISH = {
  event: {
    case: "finish" as const,
    value: {
      reason: FinishReason.STOP_STRING,
      matched: { case: "stopString" as const, value: "\n" },
      usage: { outputTokens: 2 },
    },
  },
};
const REQUEST = { model: "tiny", prompt: "Hello" };

/** A script that writes forever, and a promise that it was cancelled. */
function endlessText(): { script: Script; cancelled: Promise<void> } {
  let markCancelled: () => void;
  const cancelled = new Promise<void>((resolve) => {
    markCancelled = resolve;
  });
  const script: Script = {
    async *generate(_request, context) {
      context.signal.addEventListener("abort", () => markCancelled());
      yield PROMPT_INFO;
      while (!context.signal.aborted) {
        yield delta("more ");
        await sleep(5);
      }
    },
  };
  return { script, cancelled };
}

test("a stream gives its deltas, what the server understood, and why it ended", async (t) => {
  const client = await clientOf(t, {
    async *generate() {
      yield* [PROMPT_INFO, delta("Gr"), delta("üße 👋"), FINISH];
    },
  });
  const stream = client.generate(REQUEST);
  const texts: string[] = [];
  for await (const { text } of stream) {
    assert.equal(stream.promptInfo?.promptTokens, 3);
    texts.push(text);
  }
  assert.deepEqual(texts, ["Gr", "üße 👋"]);
  assert.equal(stream.finish?.reason, FinishReason.STOP_STRING);
  assert.deepEqual(stream.finish?.matched, { case: "stopString", value: "\n" });
  assert.equal(stream.finish?.usage?.outputTokens, 2);
});

test("text() joins the deltas", async (t) => {
  const client = await clientOf(t, {
    async *generate() {
      yield* [PROMPT_INFO, delta("one "), delta("two"), FINISH];
    },
  });
  assert.equal(await client.generate(REQUEST).text(), "one two");
});

test("a stream that ends without its last message is an error", async (t) => {
  const client = await clientOf(t, {
    async *generate() {
      yield* [PROMPT_INFO, delta("cut o")];
    },
  });
  await assert.rejects(client.generate(REQUEST).text(), { name: "AimassError", code: "UNKNOWN" });
});

test("every form of prompt and every option reaches the server", async (t) => {
  const seen: Parameters<NonNullable<Script["complete"]>>[0][] = [];
  const client = await clientOf(t, {
    complete(request) {
      seen.push(request);
      return { text: "ok" };
    },
  });
  const tool = '{"type": "function"}';
  const chat = { messages: [{ role: "user", content: "Hi", toolCalls: [tool], name: "t" }], tools: [tool] };
  for (const prompt of ["Hello", chat, { tokenIds: [1, 2] }]) {
    await client.complete({
      model: "tiny@2",
      prompt,
      sampling: { temperature: 0.5, seed: 2n ** 63n },
      stopping: { maxNewTokens: 7, stopStrings: ["\n"] },
      output: { logprobs: true, promptLogprobs: true },
      guidance: { form: { case: "regex", value: "a+" } },
      beams: { numBeams: 2, noRepeatNgramSize: 0 },
      adapter: "tone",
      cacheSalt: "s",
      priority: -3,
      timeLimitMs: 1500,
      requestId: "r-1",
    });
  }
  const [text, messages, ids] = seen.map(({ prompt }) => prompt);
  assert.deepEqual(text, { case: "text", value: "Hello" });
  assert.ok(messages?.case === "chat");
  assert.equal(messages.value.messages[0]?.content, "Hi");
  assert.deepEqual(messages.value.messages[0]?.toolCalls, [tool]);
  assert.deepEqual(messages.value.tools, [tool]);
  assert.ok(ids?.case === "tokenIds");
  assert.deepEqual(ids.value.ids, [1, 2]);
  const [request] = seen;
  assert.ok(request?.timeLimit);
  assert.equal(durationMs(request.timeLimit), 1500);
  assert.equal(request.sampling?.seed, 2n ** 63n);
  assert.equal(request.sampling?.topK, undefined);
  assert.deepEqual(request.stopping?.stopStrings, ["\n"]);
  assert.deepEqual([request.model, request.priority, request.requestId], ["tiny@2", -3, "r-1"]);
  assert.equal(request.output?.logprobs, true);
  assert.equal(request.output?.promptLogprobs, true);
  assert.deepEqual(request.guidance?.form, { case: "regex", value: "a+" });
  assert.deepEqual([request.beams?.numBeams, request.beams?.noRepeatNgramSize], [2, 0]);
  assert.equal(request.beams?.lengthPenalty, undefined);
  assert.deepEqual([request.adapter, request.cacheSalt], ["tone", "s"]);
});

test("tokenize and detokenize give ids and text", async (t) => {
  const client = await clientOf(t, {
    tokenize: ({ prompt }) => ({ tokenIds: [prompt.case === "text" ? prompt.value.length : 0] }),
    detokenize: ({ tokenIds, keepSpecialTokens }) => ({ text: `${tokenIds.join()} ${keepSpecialTokens}` }),
  });
  assert.deepEqual(await client.tokenize(REQUEST), [5]);
  assert.equal(
    await client.detokenize({ model: "tiny", tokenIds: [4, 2], keepSpecialTokens: true }),
    "4,2 true",
  );
});

test("leaving the loop early cancels the call at the server", async (t) => {
  const { script, cancelled } = endlessText();
  const client = await clientOf(t, script);
  for await (const _ of client.generate(REQUEST)) break;
  await cancelled;
});

test("an error in the loop's body cancels the call at the server and is thrown on", async (t) => {
  const { script, cancelled } = endlessText();
  const client = await clientOf(t, script);
  const read = async () => {
    for await (const _ of client.generate(REQUEST)) throw new Error("the reader fell");
  };
  await assert.rejects(read(), { message: "the reader fell" });
  await cancelled;
});

test("leaving the loop early leaves no deadline timer behind", async (t) => {
  const { script } = endlessText();
  const client = await clientOf(t, script);
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  const before = timers();
  for await (const _ of client.generate(REQUEST, { timeoutMs: 3_600_000 })) break;
  await sleep(50);
  assert.ok(timers() <= before, `${timers()} timers, ${before} before the call`);
});

test("an abort signal cancels a call under way", async (t) => {
  const { script, cancelled } = endlessText();
  const client = await clientOf(t, script);
  const abort = new AbortController();
  const read = async () => {
    for await (const _ of client.generate(REQUEST, { signal: abort.signal })) abort.abort();
  };
  await assert.rejects(read(), { name: "AimassError", code: "CANCELLED" });
  await cancelled;
});

test("a call whose signal is already aborted never reaches the server", async (t) => {
  let numCalls = 0;
  const client = await clientOf(t, {
    complete() {
      numCalls += 1;
      return {};
    },
    async *generate() {
      numCalls += 1;
      yield FINISH;
    },
  });
  const options = { signal: AbortSignal.abort() };
  await assert.rejects(client.complete(REQUEST, options), { code: "CANCELLED" });
  await assert.rejects(client.generate(REQUEST, options).text(), { code: "CANCELLED" });
  assert.equal(numCalls, 0);
});

test("a call past its deadline fails with DEADLINE_EXCEEDED and is cancelled at the server", async (t) => {
  const { script, cancelled } = endlessText();
  const client = await clientOf(t, script);
  await assert.rejects(client.generate(REQUEST, { timeoutMs: 100 }).text(), {
    name: "AimassError",
    code: "DEADLINE_EXCEEDED",
    reason: "DEADLINE_EXCEEDED",
  });
  await cancelled;
});

test("a unary call past its deadline fails with DEADLINE_EXCEEDED", async (t) => {
  const client = await clientOf(t, {
    async complete(_request, { signal }) {
      await sleep(10_000, undefined, { signal }).catch(() => undefined);
      return {};
    },
  });
  await assert.rejects(client.complete(REQUEST, { timeoutMs: 100 }), { code: "DEADLINE_EXCEEDED" });
});

test("a call that names no deadline still has one", async (t) => {
  const timeouts: (number | undefined)[] = [];
  const script: Script = {
    complete(_request, context) {
      timeouts.push(context.timeoutMs());
      return {};
    },
    async *generate(_request, context) {
      timeouts.push(context.timeoutMs());
      yield FINISH;
    },
  };
  const asIs = await clientOf(t, script);
  const configured = await clientOf(t, script, { timeoutMs: 5_000, streamTimeoutMs: 9_000 });
  for (const client of [asIs, configured]) {
    await client.complete(REQUEST);
    await client.generate(REQUEST).text();
  }
  for (const [index, limit] of [60_000, 600_000, 5_000, 9_000].entries()) {
    const timeout = timeouts[index] ?? Number.POSITIVE_INFINITY;
    assert.ok(timeout <= limit && timeout > limit - 2_000, `expected about ${limit} ms, got ${timeout}`);
  }
});

test("a deadline that gRPC cannot express is refused", async (t) => {
  const client = await clientOf(t, { complete: () => ({}) });
  for (const timeoutMs of [0, -1, Number.NaN, 1e8]) {
    await assert.rejects(client.complete(REQUEST, { timeoutMs }), { reason: "INVALID_FIELD" });
  }
});

test("two streams of one client advance side by side", async (t) => {
  const client = await clientOf(t, {
    async *generate({ prompt }) {
      for (let place = 0; place < 3; place += 1) {
        yield delta(`${prompt.value}${place} `);
        await sleep(5);
      }
      yield FINISH;
    },
  });
  const texts = await Promise.all(
    ["a", "b"].map((prompt) => client.generate({ model: "tiny", prompt }).text()),
  );
  assert.deepEqual(texts, ["a0 a1 a2 ", "b0 b1 b2 "]);
});

test("closing the client fails the calls under way", async (t) => {
  const { script } = endlessText();
  const client = await clientOf(t, script);
  const read = async () => {
    for await (const _ of client.generate(REQUEST)) client.close();
  };
  await assert.rejects(read(), (error) => error instanceof AimassError && error.code === "CANCELLED");
});

test("a value that no message can hold is refused before it is sent", async (t) => {
  const client = await clientOf(t, { complete: () => ({}) });
  const request = { ...REQUEST, priority: 1.5 };
  const refusal = { name: "AimassError", reason: "INVALID_FIELD", message: /priority.*1\.5/ };
  await assert.rejects(client.complete(request), refusal);
  await assert.rejects(client.generate(request).text(), refusal);
});
