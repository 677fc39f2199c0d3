/** Unpacks vectors from the bytes they travel in (see `VectorDtype` in the protos). Knows no call. */

import { VectorDtype } from "./gen/aimass/embedding/v1/embedding_service_pb.js";

/** Bytes as they came, and what they mean. */
export interface PackedVector {
  readonly packed: Uint8Array;
  readonly dtype: VectorDtype;
  /** Numbers in the vector. */
  readonly dimensions: number;
  /** INT8 only: what each byte is multiplied by. */
  readonly scale: number;
}

/**
 * The numbers of a packed vector. BINARY gives 1 where the bit is set and -1 where it is not, so that a dot
 * product is `dimensions - 2 * hamming distance`. Throws `RangeError` when the bytes do not fit the dimensions.
 */
export function unpackVector(vector: PackedVector): Float32Array {
  const { packed, dtype, dimensions } = vector;
  const expectedBytes = packedBytes(dtype, dimensions);
  if (packed.byteLength !== expectedBytes) {
    throw new RangeError(
      `expected ${expectedBytes} bytes for ${dimensions} dimensions of ${VectorDtype[dtype]}, got ${packed.byteLength}`,
    );
  }
  const read = reader(vector);
  return Float32Array.from({ length: dimensions }, (_, index) => read(index));
}

function packedBytes(dtype: VectorDtype, dimensions: number): number {
  switch (dtype) {
    case VectorDtype.FLOAT32:
      return 4 * dimensions;
    case VectorDtype.FLOAT16:
      return 2 * dimensions;
    case VectorDtype.INT8:
      return dimensions;
    case VectorDtype.BINARY:
      return Math.ceil(dimensions / 8);
    default:
      throw new RangeError(`expected a known dtype, got ${VectorDtype[dtype] ?? dtype}`);
  }
}

function reader({ packed, dtype, scale }: PackedVector): (index: number) => number {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  switch (dtype) {
    case VectorDtype.FLOAT16:
      return (index) => halfToNumber(view.getUint16(2 * index, true));
    case VectorDtype.INT8:
      return (index) => view.getInt8(index) * scale;
    case VectorDtype.BINARY:
      return (index) => ((view.getUint8(index >> 3) >> (7 - (index & 7))) & 1 ? 1 : -1);
    default:
      return (index) => view.getFloat32(4 * index, true);
  }
}

/** IEEE 754 half precision: 1 sign bit, 5 exponent bits with bias 15, 10 fraction bits. */
function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
