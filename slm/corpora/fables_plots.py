"""What happens in the fables, as data; notation and rules of the house as in fables_grammar.py."""
from __future__ import annotations

PLOTS = r"""
lost:
    <lost_begin> <lost_search> <lost_found> <lost_end>
lost_begin:
    {hero} could not find {hero:her} {look} {thing}.
    {hero} lost {hero:her} {look} {thing}.
    the {look} {thing} of {hero} was gone.
lost_search:
    {hero:She} looked {spot} and {spot2}.
    {hero:She} looked {spot}, but found only a leaf.
    "Where is my {thing}?" {hero:she} cried. It was not {spot}.
    {hero:She} was so sad that {hero:she} sat down {yard} and cried.
    {hero:She} asked everyone, but nobody had seen it.
lost_found:
    Then {friend} the {friend:species} came by and found it {spot3}.
    Then <comes> called, "Your {thing} is {spot3}!"
    {friend}, {friend:a trait} {friend:species}, found the {thing} {spot3}.
    {friend} the {friend:species}, who lived {friend:home}, had seen it {spot3}.
    "I saw {thing:a} {spot3}," said {friend} the {friend:species}. There it was!
lost_end:
    "Thank you, {friend}!" said {hero}, and {hero:she} hugged the {thing}.
    {hero} was so happy to have the {thing} back that {hero:she} hugged {friend}.
    "You found it!" said {hero}. {hero:She} gave {friend} some {hero:food}.
    {hero} thanked {friend} and put the {thing} in a safe place.
    {hero} and {friend} played with the {thing} until dark.
    "My {thing}!" said {hero}. <end>

share:
    <share_begin> <share_ask> <share_no> <share_yes> <share_end>
share_begin:
    {hero} had a basket of {hero:food}.
    {hero} picked {count} big {hero:food}.
    {hero} sat {yard} to eat {hero:food}.
share_ask:
    {friend} the {friend:species} came by. "May I have some?" asked {friend}.
    {friend}, {friend:a trait} {friend:species}, was hungry and asked for some.
    {friend} the {friend:species} came from {friend:her} home {friend:home} and was very hungry.
    Then <comes> came with nothing to eat.
share_no:
    {hero} did not want to share.
    "No, they are mine!" said {hero}.
    At first, {hero} wanted to keep them all.
    {hero} hid the {hero:food} {spot}.
share_yes:
    But then {hero:she} felt bad and gave {friend} half.
    Then {hero} thought, "It is no fun to eat alone."
    But {friend} looked sad. "Here, take half," said {hero}.
    Then {hero} smiled and gave {friend} some {hero:food}.
share_end:
    {hero} learned that it is good to share.
    {friend} gave {hero} {look:a} {thing} to say thank you.
    The next day, {friend} shared {friend:food} with {hero}.
    "You are so {hero:trait}!" said {friend}.
    <end>

fear:
    <fear_begin> <fear_help> <fear_end>
fear_begin:
    {hero} was sad because {hero:she} was afraid of {hero:fear}.
    {hero} wanted to play {yard}, but {hero:she} was afraid of {hero:fear}.
    {hero} had a bad dream about {hero:fear}.
fear_help:
    <brings> held {hero:her} hand. "I was afraid of {friend:fear} once," said {friend}.
    "Do not be afraid," said {friend} the {friend:species}. "I will stay with you."
    "Take my {look} {thing}," said {friend} the {friend:species}. "It will make you brave."
    "When I am afraid, I {friend:hobby}," said {friend} the {friend:species}. So they did that.
    {friend}, {friend:a trait} {friend:species}, said, "Let us be brave together."
fear_end:
    {hero} took a deep breath. Soon {hero:she} was not afraid of {hero:fear} any more.
    {hero} closed {hero:her} eyes and counted to {count}. It was not so bad! <end>
    {hero} tried, and {hero:she} did it! "I am not afraid now," said {hero}. <end>
    {hero:Her} heart beat fast, but {hero} was brave. {friend} was proud of {hero:him}.
    After that, {hero} felt much better. <end>

gift:
    <gift_begin> <gift_make> <gift_open> <gift_end>
gift_begin:
    it was the birthday of <comes>.
    {hero} wanted to give {friend} the {friend:species} a gift.
gift_make:
    {hero} made {friend:him} {look:a} {thing} and put it in a {shade} box.
    {hero} had no money, so {hero:she} made {look:a} {thing} out of {shade} paper.
    {hero} knew that {friend} loved {friend:food}, so {hero:she} picked {count} {friend:food}.
    {friend} liked {friend:colour}, so {hero} made {friend:a colour} scarf.
    {hero} found {look:a} {thing} for {friend:him} {spot}.
gift_open:
    {hero:She} took it to {friend}'s home {friend:home}.
    {friend} opened it and jumped for joy.
    When {friend} saw it, {friend:she} smiled a big smile.
    {friend} danced around the house {count2} times.
gift_end:
    "Thank you, {hero}!" said {friend}. "I love it!"
    "This is the best gift ever," said {friend}. <end>
    {friend} gave {hero} a big hug. {hero} felt warm inside.
    Then they went to {friend:hobby} together. <end>

storm:
    <storm_begin> <storm_bad> <storm_in> <storm_end>
storm_begin:
    a big storm came.
    dark clouds came and it began to rain.
    the wind began to blow hard.
storm_bad:
    {hero} got very wet and cold.
    The wind took {hero}'s {look} {thing} away.
    {hero} was alone and afraid.
    The roof of {hero}'s house fell down.
    {hero} had left {hero:her} {look} {thing} {yard}.
storm_in:
    {hero:She} ran to {friend} the {friend:species}, who lived {friend:home}.
    "Come in, {hero}!" called {friend} the {friend:species}.
    {hero:She} ran to the house of {friend}, {friend:a trait} {friend:species}.
    <brings> let {hero:him} in.
storm_end:
    They had {warm} and told stories until the sun came out. <end>
    {friend} made {warm}, and soon {hero} was not cold any more. <end>
    {friend} gave {hero} {friend:a colour} blanket and some {warm}. <end>
    When the storm was over, they saw a rainbow. <end>
    They played {game} until the storm was over. "You are so {friend:trait}!" said {hero}.

stuck:
    <stuck_begin> <stuck_up> <stuck_try> <stuck_down> <stuck_end>
stuck_begin:
    {hero} had {look:a} {flyer}.
    {hero} was playing with {hero:her} {look} {flyer}.
stuck_up:
    The wind took it up to {high}.
    It flew away and got stuck on {high}.
    It went up, up, up to {high}.
stuck_try:
    {hero} jumped {count} times, but {hero:she} could not get it.
    {hero} tried to climb up, but it was too high.
    "Oh no, my {flyer}!" cried {hero}.
    {hero} sat down {yard} and cried.
stuck_down:
    Then <comes> came with {tool}.
    {friend} the {friend:species} had {tool} at {friend:her} home {friend:home}.
    {friend}, {friend:a trait} {friend:species}, said, "Let us use {tool}."
    <brings> ran to get {tool}.
stuck_end:
    Soon the {flyer} was down. "Thank you, {friend}!" said {hero}.
    They got the {flyer} back. <end>
    {friend} got it down. {hero} said, "You are so {friend:trait}!"
    {hero} was happy and let {friend} play with the {flyer} too.
    {hero} hugged {hero:her} {flyer} and {friend} hugged {hero}.

promise:
    <promise_begin> <promise_see> <promise_go> <promise_end>
promise_begin:
    {hero} had to take {look:a} {thing} to {friend} the {friend:species}.
    {hero} told {friend} the {friend:species}, "I will bring you {friend:food}."
promise_see:
    On the way, {hero:she} saw {sight} and wanted to stop.
    But then {hero:she} saw {sight} and forgot all about it.
    On the road there was {sight}. {hero:She} played for a long time.
    But {yard} there was {sight}!
promise_go:
    "I made a promise," thought {hero}. {hero:She} ran to {friend}'s home {friend:home}.
    Then {hero} thought of {friend} and ran as fast as {hero:she} could.
    But {hero} did not want to make {friend} sad, so {hero:she} went on.
promise_end:
    "You kept your promise!" said {friend}.
    {friend} was waiting {friend:home}. "I knew you would come," {friend:she} said.
    {friend} was very happy. {hero} learned to keep a promise.
    "Thank you, {hero}," said {friend}. "You are so {hero:trait}!"
    They sat down {yard2} to eat {friend:food}.

help:
    <help_begin> <help_ask> <help_pull> <help_end>
help_begin:
    {friend} the {friend:species} was sad. {friend:Her} {load} was stuck in the {mire}.
    {hero} saw {friend} the {friend:species} with {load:a} that was stuck in the {mire}.
help_ask:
    "Can you help me?" asked {friend}.
    "I have to get home," said {friend}, who lived {friend:home}.
    {friend} was taking {friend:food} to the town.
    {hero} wanted to help.
help_pull:
    {hero} pulled and pulled until the {load} was out.
    {hero} pulled {count} times, and out came the {load}!
    "I am strong," said {hero}. They pulled the {load} together.
    They put {tool} under the {load}, and it came out.
help_end:
    {friend} thanked {hero} and gave {hero:him} {look:a} {thing}. <end>
    "You are so {hero:trait}, {hero}!" said {friend}. <end>
    After that, {friend} took {hero} for a ride in the {load}.
    {friend} said, "Come and eat {friend:food} with me." <end>
    {hero} and {friend} went to {friend:hobby} together.

race:
    <race_begin> <race_fall> <race_stop> <race_end>
race_begin:
    {hero} and {friend} the {friend:species} had a race to {goal}.
    {friend}, {friend:a trait} {friend:species}, said, "I can run to {goal} faster than you!"
race_fall:
    They ran and ran. Then {friend} fell and hurt {friend:her} {hurt}.
    {hero} was fast, but then {friend} fell and hurt {friend:her} {hurt}.
    Before long, {friend} fell in the {mire}.
race_stop:
    {hero} stopped and ran back to help {friend:him} up.
    "Are you all right?" asked {hero}.
    {hero} could win the race now, but {hero:she} went back to {friend}.
race_end:
    They walked to {goal} side by side. <end>
    {hero} took {friend} home, and they had {warm}. <end>
    Nobody won the race, but {hero} had won a friend. <end>
    "You are a true friend," said {friend}. <end>

truth:
    <truth_begin> <truth_break> <truth_hide> <truth_tell> <truth_end>
truth_begin:
    {hero} had the {look} {thing} of {friend} the {friend:species}.
    {friend} the {friend:species} let {hero} play with {friend:her} {look} {thing}.
truth_break:
    It fell and broke.
    {hero} dropped it, and it broke.
    Then it broke in {count}!
truth_hide:
    {hero} wanted to hide it {spot}.
    {hero} felt bad and cried.
    "Nobody will know," thought {hero}.
truth_tell:
    But then {hero:she} said, "I am sorry. I broke your {thing}."
    But {hero:she} told {friend} all about it.
    But {hero:she} ran to {friend}'s home {friend:home} to say sorry.
truth_end:
    "We can fix it with {glue}," said {friend}.
    "Thank you for telling me," said {friend}. They fixed the {thing} with {glue}.
    {friend} hugged {hero:him}. "I like you more than my {thing}," {friend:she} said.
    "It is all right," said {friend}. <end>

garden:
    {hero} put a seed in the ground {yard}. <garden_wait> <garden_who> <garden_grow>
    {friend} the {friend:species} gave {hero} a seed. <garden_put> <garden_grow>
garden_put:
    {hero:She} put it in the ground {yard}. <garden_wait> <garden_say>
garden_wait:
    {hero:She} gave it water every day, but nothing came up.
    {hero:She} waited for {count} days, but saw nothing.
garden_who:
    "Just wait," said {friend}, {friend:a trait} {friend:species}.
    "Good things take time," said {friend} the {friend:species}.
    {friend} the {friend:species}, who lived {friend:home}, said, "Do not give up."
    <brings> came to {friend:hobby} with {hero:him}.
garden_say:
    "Just wait," said {friend}.
    "My {friend:food} took a long time too," said {friend}.
    "Let us {friend:hobby} while we wait," said {friend}.
garden_grow:
    Then there was a {shade} {plant}! <end>
    {hero} kept on, and soon there was a {plant} {yard}. <end>
    In the end, a big {plant} came up. {hero} and {friend} danced around the {plant}.
    At last a little {plant} came, as {friend:colour} as {friend}'s hat. <end>

meet:
    {hero} saw <meet_new> sitting alone {yard}. <meet_ask> <meet_play> <meet_end>
meet_new:
    {friend:a trait} {friend:species} named {friend}
    {friend:a species} in {friend:a colour} hat named {friend}
meet_ask:
    "Do you want to play {game}?" asked {hero}.
    {friend} had no friends. "Let us play {game}," said {hero}.
    {friend} missed {friend:her} home {friend:home}. {hero} asked {friend:him} to play {game}.
meet_play:
    They played until it was dark.
    {friend} was very good at {game}!
    {friend} showed {hero} how to {friend:hobby}, too.
meet_end:
    Now {friend} was not alone any more. <end>
    "You are my best friend," said {friend}. "Let us play {game} again!"
    {hero} gave {friend} some {hero:food}. <end>

noise:
    <noise_begin> <noise_think> <noise_see> <noise_end>
noise_begin:
    {hero} heard a {sound} noise {spot}.
    there was a {sound} noise {spot}.
noise_think:
    "Is it a {monster}?" thought {hero}. {hero:She} wanted to run away.
    {hero} was afraid. {hero:She} thought it was a {monster}.
noise_see:
    But it was only {friend} the {friend:species}, who was eating {friend:food}.
    It was {friend} the {friend:species}, looking for {friend:her} {look} {thing}!
    Then {hero:she} saw {friend:a colour} hat. It was {friend} the {friend:species}!
noise_end:
    "You are not a {monster}!" said {hero}. <end>
    "I am sorry, {hero}," said {friend}. <end>
    {hero} was glad that it was no {monster}. <end>

found:
    {hero} found {look:a} {thing} {spot}. <found_whose> <found_back> <found_end>
found_whose:
    {hero:She} wanted to keep it, but it was not {hero:hers}.
    {hero:She} knew it was {friend}'s {thing}.
    "{friend} has {thing:a} like this," thought {hero}.
found_back:
    So {hero:she} took it to {friend} the {friend:species}, who lived {friend:home}.
    {friend} the {friend:species} was {yard}, crying. "Is this your {thing}?" asked {hero}.
found_end:
    "My {thing}!" said {friend}. "You are so {hero:trait}!"
    {friend} was so happy that {friend:she} gave {hero} {count} {friend:food}. <end>
    {friend} hugged the {thing} and then {friend:she} hugged {hero}. <end>
    "Thank you, {hero}!" said {friend}. <end>

sick:
    {friend} the {friend:species} was in bed with {ill}. <sick_bring> <sick_do> <sick_end>
sick_bring:
    {hero} went to see {friend:him} {friend:home} and took {warm} along.
    {hero} took {friend:him} {count} {hero:food}.
    {hero} gave {friend:him} {look:a} {thing} to play with.
sick_do:
    {hero:She} told {friend:him} a story about a {monster}.
    {hero:She} sat by the bed and read {friend:him} a book.
    They played {game} until it was dark.
sick_end:
    The next day, {friend} felt much better. <end>
    "Now I feel better," said {friend}. "Thank you, {hero}." <end>
    Soon {friend} could {friend:hobby} again. <end>
"""
