// Pictures to begin with, drawn here: four subjects, each with variants that a model should find alike.

const WIDTH = 512;
const HEIGHT = 384;
const SUBJECTS = { coast: [drawCoast, 7], cells: [drawCells, 9], fields: [drawFields, 11], board: [drawBoard, 8] };
const VARIANTS = 3;

/** PNG files, the same each time. */
export async function samples() {
  const made = [];
  for (let variant = 0; variant < VARIANTS; variant += 1) {
    for (const subject of Object.keys(SUBJECTS)) made.push(await sample(subject, variant));
  }
  return made;
}

/** A small canvas of each subject, to look at. */
export const subjects = () => Object.keys(SUBJECTS).map((subject) => drawn(subject, 0, 0.5));

/** A picture of a subject; grain goes with the full size only, where it is seen. */
function drawn(subject, variant, scale = 1) {
  const [draw, amount] = SUBJECTS[subject];
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH * scale;
  canvas.height = HEIGHT * scale;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.scale(scale, scale);
  const pick = chance(variant * 97 + subject.length * 13 + 5);
  draw(context, pick, variant);
  if (scale === 1) grain(context, pick, amount);
  return canvas;
}

async function sample(subject, variant) {
  const blob = await new Promise((resolve) => drawn(subject, variant).toBlob(resolve, "image/png"));
  return new File([blob], `${subject}-${variant + 1}.png`, { type: "image/png" });
}

/** Numbers by chance, the same for the same seed: between low and high. */
function chance(seed) {
  let state = seed;
  return (low = 0, high = 1) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return low + (((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296) * (high - low);
  };
}

const hsl = (hue, saturation, light, alpha = 1) => `hsl(${hue} ${saturation}% ${light}% / ${alpha})`;

function gradient(context, stops, height = HEIGHT) {
  const made = context.createLinearGradient(0, 0, 0, height);
  stops.forEach(([at, colour]) => made.addColorStop(at, colour));
  return made;
}

function disc(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, Math.PI * 2);
  context.fill();
}

/** A closed smooth outline around a point, its radius disturbed. */
function blob(context, pick, x, y, radius, roughness) {
  const points = Array.from({ length: 9 }, (_, index) => {
    const angle = (index / 9) * Math.PI * 2;
    const reach = radius * pick(1 - roughness, 1 + roughness);
    return [x + Math.cos(angle) * reach, y + Math.sin(angle) * reach];
  });
  const middle = ([ax, ay], [bx, by]) => [(ax + bx) / 2, (ay + by) / 2];
  context.beginPath();
  context.moveTo(...middle(points.at(-1), points[0]));
  points.forEach((point, index) => context.quadraticCurveTo(...point, ...middle(point, points[(index + 1) % 9])));
  context.closePath();
}

/** Fine grain, without which drawn pictures look like nothing a model knows. */
function grain(context, pick, amount) {
  const image = context.getImageData(0, 0, WIDTH, HEIGHT);
  for (let index = 0; index < image.data.length; index += 4) {
    const shift = pick(-amount, amount);
    for (let channel = 0; channel < 3; channel += 1) image.data[index + channel] += shift;
  }
  context.putImageData(image, 0, 0);
}

function drawCoast(context, pick, variant) {
  const hue = [18, 28, 350][variant];
  context.fillStyle = gradient(context, [
    [0, hsl(hue + 200, 42, 38)], [0.42, hsl(hue, 70, 72)], [0.6, hsl(hue + 12, 85, 80)],
  ]);
  context.fillRect(0, 0, WIDTH, HEIGHT);
  const sun = [368, 160, 330][variant];
  context.fillStyle = hsl(hue + 25, 100, 92);
  disc(context, sun, 178, 34);
  for (let range = 0; range < 3; range += 1) drawHills(context, pick, 205 + range * 14, hsl(hue + 215, 24, 46 - range * 9));
  context.fillStyle = gradient(context, [[0.6, hsl(hue + 190, 32, 44)], [1, hsl(hue + 205, 45, 18)]]);
  context.fillRect(0, 244, WIDTH, HEIGHT - 244);
  for (let line = 0; line < 90; line += 1) {
    const y = 246 + (line / 90) ** 1.6 * 136;
    const width = pick(8, 30 + line);
    context.fillStyle = hsl(hue + 15, 90, 84, pick(0.1, 0.55));
    context.fillRect(sun + pick(-1, 1) * (14 + line * 0.8) - width / 2, y, width, 1 + line / 45);
  }
  drawBoat(context, ...[[260, 276, 1.55], [338, 306, 1.25], [196, 294, 1.4]][variant]);
}

function drawHills(context, pick, base, colour) {
  const phases = [pick(0, 6), pick(0, 6), pick(0, 6)];
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(0, HEIGHT);
  for (let x = 0; x <= WIDTH; x += 4) {
    const wave = phases.reduce((sum, phase, order) => sum + Math.sin((x / 90) * (order + 0.7) + phase) / (order + 1), 0);
    context.lineTo(x, base - 16 * wave - 8);
  }
  context.lineTo(WIDTH, HEIGHT);
  context.fill();
}

function drawBoat(context, x, y, scale) {
  context.save();
  context.translate(x, y);
  context.scale(scale, scale);
  context.fillStyle = "#241c26";
  context.fill(new Path2D("M-26 0 L26 0 L18 11 L-18 11 Z M-1.5 0 L-1.5 -54 L1.5 -54 L1.5 0 Z"));
  context.fillStyle = "#f4ead9";
  context.fill(new Path2D("M4 -52 Q30 -26 26 -5 L4 -5 Z M-4 -46 Q-20 -22 -22 -5 L-4 -5 Z"));
  context.restore();
}

function drawCells(context, pick, variant) {
  const hue = [318, 326, 308][variant];
  context.fillStyle = hsl(hue, 46, 90);
  context.fillRect(0, 0, WIDTH, HEIGHT);
  for (let strand = 0; strand < 60; strand += 1) {
    context.strokeStyle = hsl(hue + 14, 55, pick(74, 86), 0.45);
    context.lineWidth = pick(2, 9);
    const [x, y] = [pick(-40, WIDTH), pick(0, HEIGHT)];
    context.beginPath();
    context.moveTo(x, y);
    context.bezierCurveTo(x + 60, y + pick(-40, 40), x + 120, y + pick(-40, 40), x + 190, y + pick(-50, 50));
    context.stroke();
  }
  for (let cell = 0; cell < 58 + variant * 14; cell += 1) drawCell(context, pick, hue);
}

function drawCell(context, pick, hue) {
  const [x, y, radius] = [pick(0, WIDTH), pick(0, HEIGHT), pick(15, 27)];
  context.fillStyle = hsl(hue + 4, 48, pick(72, 80), 0.85);
  context.strokeStyle = hsl(hue, 40, 62, 0.7);
  context.lineWidth = 1.5;
  blob(context, pick, x, y, radius, 0.16);
  context.fill();
  context.stroke();
  context.fillStyle = hsl(268, 44, pick(28, 42));
  blob(context, pick, x + pick(-4, 4), y + pick(-4, 4), radius * pick(0.36, 0.52), 0.12);
  context.fill();
  context.fillStyle = hsl(272, 55, 20, 0.7);
  disc(context, x + pick(-4, 4), y + pick(-4, 4), 2.2);
}

function drawFields(context, pick, variant) {
  const hues = [[88, 62, 44, 105], [96, 52, 38, 78], [70, 110, 48, 34]][variant];
  context.fillStyle = hsl(80, 22, 34);
  context.fillRect(0, 0, WIDTH, HEIGHT);
  context.save();
  context.translate(WIDTH / 2, HEIGHT / 2);
  context.rotate([-0.22, 0.3, 0.08][variant]);
  for (let y = -330; y < 330; y += 88) {
    for (let x = -380; x < 380; ) {
      const width = pick(54, 132);
      drawField(context, pick, x, y, width - 4, 84, hues[Math.floor(pick(0, 4))]);
      x += width;
    }
  }
  context.restore();
  drawRiver(context, pick, variant);
}

function drawField(context, pick, x, y, width, height, hue) {
  const light = pick(32, 56);
  context.fillStyle = hsl(hue, pick(26, 48), light);
  context.fillRect(x, y, width, height);
  context.fillStyle = hsl(hue, 36, light - 7, 0.55);
  const gap = pick(5, 9);
  for (let at = gap; at < width - 1; at += gap) context.fillRect(x + at, y, 1.8, height);
}

function drawRiver(context, pick, variant) {
  const y = [120, 250, 190][variant];
  const path = new Path2D(`M-20 ${y} C 120 ${y + pick(-90, 20)}, 200 ${y + pick(40, 120)}, 300 ${y + pick(-30, 40)} `
    + `S 450 ${y + pick(-110, -30)}, 540 ${y + pick(-30, 60)}`);
  for (const [width, colour] of [[34, hsl(95, 30, 22)], [22, hsl(200, 40, 36)], [12, hsl(198, 42, 44)]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke(path);
  }
}

function drawBoard(context, pick, variant) {
  const hue = [158, 152, 166][variant];
  context.fillStyle = hsl(hue, 58, 20);
  context.fillRect(0, 0, WIDTH, HEIGHT);
  for (let track = 0; track < 46; track += 1) drawTrack(context, pick, hsl(hue, 48, pick(28, 36)));
  const chips = [[70, 60, 150, 96], [300, 190, 120, 120], [90, 240, 110, 70], [330, 52, 90, 60]];
  for (const [x, y, width, height] of chips) {
    drawChip(context, x + pick(-24, 24), y + pick(-20, 20), width * pick(0.8, 1.1), height);
  }
  for (let part = 0; part < 26; part += 1) drawPart(context, pick);
  if (variant === 2) drawScratch(context, pick);
}

function drawTrack(context, pick, colour) {
  let [x, y] = [Math.round(pick(0, 64)) * 8, Math.round(pick(0, 48)) * 8];
  context.strokeStyle = colour;
  context.lineWidth = 3;
  context.beginPath();
  context.moveTo(x, y);
  for (let bend = 0; bend < 3; bend += 1) {
    const reach = Math.round(pick(-12, 12)) * 8;
    if (bend % 2) y += reach;
    else x += reach;
    context.lineTo(x, y);
  }
  context.stroke();
  context.fillStyle = "#c9b26a";
  disc(context, x, y, 4.5);
  context.fillStyle = "#10281f";
  disc(context, x, y, 2);
}

function drawChip(context, x, y, width, height) {
  context.fillStyle = "#c8cbc6";
  for (let pin = 8; pin < width - 6; pin += 12) context.fillRect(x + pin, y - 8, 6, height + 16);
  context.fillStyle = gradient(context, [[0, "#3a3d40"], [1, "#17181a"]]);
  context.fillRect(x, y, width, height);
  context.fillStyle = "#5b5f63";
  disc(context, x + 12, y + 12, 4);
  context.fillRect(x + width * 0.25, y + height * 0.45, width * 0.5, 3);
  context.fillRect(x + width * 0.25, y + height * 0.58, width * 0.36, 3);
}

function drawPart(context, pick) {
  const [x, y] = [pick(10, WIDTH - 30), pick(10, HEIGHT - 20)];
  context.fillStyle = "#d8dad4";
  context.fillRect(x, y, 22, 9);
  context.fillStyle = pick() < 0.5 ? "#a98555" : "#222428";
  context.fillRect(x + 5, y - 0.5, 12, 10);
}

function drawScratch(context, pick) {
  context.strokeStyle = "#e8d9b0";
  context.lineWidth = 3.5;
  context.beginPath();
  context.moveTo(196, 120);
  context.quadraticCurveTo(250, pick(150, 190), 286, 148);
  context.lineTo(330, pick(180, 210));
  context.stroke();
}
