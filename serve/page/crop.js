// What of an image the model sees: the same rule as the service's preprocessing, drawn at the screen's resolution.

const THUMBNAIL = 240; // pixels

/** Decode a file as the service does, upright; null where the browser cannot (it may know fewer formats). */
export async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    return null;
  }
}

/** The rectangle of an image, in its own pixels, that preprocessing keeps. */
export function keptPart(width, height, preprocess) {
  if (preprocess.resize === "squash") return { left: 0, top: 0, width, height };
  const size = preprocess.image_size;
  const short = Math.floor(size / preprocess.crop_fraction);
  const side = (Math.min(width, height) * size) / short;
  return { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
}

/** Draw a part of an image over a whole canvas; on white, as the service does with what is transparent. */
export function drawPart(canvas, bitmap, part) {
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, part.left, part.top, part.width, part.height, 0, 0, canvas.width, canvas.height);
}

/** The middle of an image, as a small canvas for lists. */
export function thumbnail(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = THUMBNAIL;
  const side = Math.min(bitmap.width, bitmap.height);
  drawPart(canvas, bitmap, {
    left: (bitmap.width - side) / 2, top: (bitmap.height - side) / 2, width: side, height: side,
  });
  return canvas;
}

/** A copy of a canvas: an element can be in one place only. */
export function copyOf(canvas) {
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

/** How preprocessing treats an image, in words. */
export function describeCrop(bitmap, preprocess) {
  const size = `${preprocess.image_size} × ${preprocess.image_size}`;
  if (!bitmap) return `seen at ${size}`;
  const from = `${bitmap.width} × ${bitmap.height}`;
  return preprocess.resize === "squash" ? `${from}, squeezed to ${size}` : `the middle of ${from}, at ${size}`;
}
