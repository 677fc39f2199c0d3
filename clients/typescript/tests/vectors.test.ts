import assert from "node:assert/strict";
import { test } from "node:test";
import { unpackVector, VectorDtype } from "../src/index.js";

const bytes = (...values: number[]) => Uint8Array.from(values);

test("float32 is read little-endian, wherever it lies in its buffer", () => {
  const packed = bytes(0xff, 0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x00, 0xc0).subarray(1);
  const vector = unpackVector({ packed, dtype: VectorDtype.FLOAT32, dimensions: 2, scale: 0 });
  assert.deepEqual(vector, Float32Array.of(1, -2));
});

test("float16 covers normal, subnormal and special numbers", () => {
  const halves: [number, number][] = [
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x3555, 0.333251953125],
    [0x0400, 2 ** -14],
    [0x03ff, 1023 * 2 ** -24],
    [0x0001, 2 ** -24],
    [0x8001, -(2 ** -24)],
    [0x7c00, Number.POSITIVE_INFINITY],
    [0xfc00, Number.NEGATIVE_INFINITY],
    [0x8000, -0],
  ];
  const packed = bytes(...halves.flatMap(([half]) => [half & 0xff, half >> 8]));
  const vector = unpackVector({ packed, dtype: VectorDtype.FLOAT16, dimensions: halves.length, scale: 0 });
  assert.deepEqual(
    [...vector],
    halves.map(([, number]) => number),
  );
});

test("a half that is not a number stays one", () => {
  const packed = bytes(0x01, 0x7e);
  const [value] = unpackVector({ packed, dtype: VectorDtype.FLOAT16, dimensions: 1, scale: 0 });
  assert.ok(Number.isNaN(value));
});

test("int8 is signed and scaled", () => {
  const packed = bytes(127, 0x81, 0, 64);
  const vector = unpackVector({ packed, dtype: VectorDtype.INT8, dimensions: 4, scale: 0.5 });
  assert.deepEqual(vector, Float32Array.of(63.5, -63.5, 0, 32));
});

test("binary is read from the most significant bit, without its padding", () => {
  const packed = bytes(0b1010_0000, 0b1100_0000);
  const vector = unpackVector({ packed, dtype: VectorDtype.BINARY, dimensions: 10, scale: 0 });
  assert.deepEqual([...vector], [1, -1, 1, -1, -1, -1, -1, -1, 1, 1]);
});

test("bytes that do not fit the dimensions are refused", () => {
  for (const dtype of [VectorDtype.FLOAT32, VectorDtype.FLOAT16, VectorDtype.INT8, VectorDtype.BINARY]) {
    const vector = { packed: bytes(1, 2, 3), dtype, dimensions: 100, scale: 1 };
    assert.throws(() => unpackVector(vector), RangeError);
  }
});

test("a dtype this client does not know is refused", () => {
  const vector = { packed: bytes(1), dtype: 99 as VectorDtype, dimensions: 1, scale: 1 };
  assert.throws(() => unpackVector(vector), RangeError);
});
