/** The client against a real generation service. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  AimassError,
  Connection,
  FinishReason,
  GenerationClient,
  ModelClient,
  ModelState,
  Task,
} from "../../src/index.js";
import { ADDRESS, MODEL } from "./service.js";

const connection = new Connection({ address: ADDRESS });
const client = new GenerationClient(connection);
const GREEDY = { temperature: 0 };
const PROMPT = "Once upon a time";

test("the streamed text is the whole text", async () => {
  const request = {
    model: MODEL,
    prompt: PROMPT,
    sampling: GREEDY,
    stopping: { maxNewTokens: 24, ignoreEos: true },
  };
  const stream = client.generate({ ...request, output: { tokenIds: true } });
  let text = "";
  let numTokens = 0;
  for await (const delta of stream) {
    text += delta.text;
    numTokens += delta.tokenIds.length;
  }
  assert.equal(text, (await client.complete(request)).text);
  assert.equal(numTokens, 24);
  assert.equal(stream.finish?.reason, FinishReason.MAX_NEW_TOKENS);
  assert.equal(stream.finish?.usage?.outputTokens, 24);
  assert.equal(stream.promptInfo?.promptTokens, stream.finish?.usage?.inputTokens);
  assert.ok((stream.finish?.timings?.totalMs ?? 0) > 0);
});

test("a seed makes a sampled text repeatable", async () => {
  const sampling = { temperature: 1.5, seed: 2n ** 63n + 1n };
  const request = { model: MODEL, prompt: PROMPT, sampling, stopping: { maxNewTokens: 12 } };
  const [first, second] = await Promise.all([client.complete(request), client.complete(request)]);
  assert.equal(first.promptInfo?.seed, sampling.seed);
  assert.equal(first.text, second.text);
});

test("a prompt is the same as text and as token ids", async () => {
  const tokenIds = await client.tokenize({ model: MODEL, prompt: PROMPT });
  assert.equal(await client.detokenize({ model: MODEL, tokenIds }), PROMPT);
  const [byText, byIds] = await Promise.all(
    [PROMPT, { tokenIds }].map((prompt) =>
      client.generate({ model: MODEL, prompt, sampling: GREEDY, stopping: { maxNewTokens: 8 } }).text(),
    ),
  );
  assert.equal(byText, byIds);
});

test("a stream left early is over at once, and the next one is served", async () => {
  const request = { model: MODEL, prompt: PROMPT, stopping: { maxNewTokens: 200, ignoreEos: true } };
  for await (const delta of client.generate(request)) {
    if (delta.text) break;
  }
  assert.ok(await client.complete({ ...request, stopping: { maxNewTokens: 2 } }));
});

test("an unknown model is MODEL_NOT_FOUND, with the name of the request", async () => {
  const request = { model: "no-such-model", prompt: PROMPT, requestId: "ts-unknown-model" };
  for (const call of [() => client.complete(request), () => client.generate(request).text()]) {
    await assert.rejects(call, {
      name: "AimassError",
      code: "NOT_FOUND",
      reason: "MODEL_NOT_FOUND",
      requestId: "ts-unknown-model",
      message: /no-such-model.*is not served here/,
    });
  }
});

test("a field out of range is named", async () => {
  const request = { model: MODEL, prompt: PROMPT, sampling: { temperature: 11 } };
  const error = await client.complete(request).catch((cause: unknown) => cause);
  assert.ok(error instanceof AimassError);
  assert.deepEqual([error.code, error.reason], ["INVALID_ARGUMENT", "INVALID_FIELD"]);
  assert.deepEqual(
    error.violations.map(({ field }) => field),
    ["sampling.temperature"],
  );
});

test("a deadline too short for the text is DEADLINE_EXCEEDED", async () => {
  const request = { model: MODEL, prompt: PROMPT, stopping: { maxNewTokens: 200, ignoreEos: true } };
  await assert.rejects(client.generate(request, { timeoutMs: 1 }).text(), { code: "DEADLINE_EXCEEDED" });
});

test("the service tells which models it has", async () => {
  const models = new ModelClient(connection);
  const [model] = await models.list();
  assert.equal(model?.name, MODEL);
  assert.equal(model?.task, Task.TEXT_GENERATION);
  assert.equal(model?.state, ModelState.READY);
  assert.ok((model?.parity?.measures.length ?? 0) > 0);
  assert.equal((await models.get(`${MODEL}@${model?.version}`)).name, MODEL);
  await assert.rejects(models.get("no-such-model"), { reason: "MODEL_NOT_FOUND" });
});
